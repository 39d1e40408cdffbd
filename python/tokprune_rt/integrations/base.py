"""What `SentenceTransformer` and `CrossEncoder` share: loading, prompts, devices, pools, saving."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from typing import Any, ClassVar, TypeVar, cast

from tokprune_rt.integrations import features, pool, saving
from tokprune_rt.integrations.extras import require
from tokprune_rt.integrations.extras import torch as _torch
from tokprune_rt.integrations.settings import Settings
from tokprune_rt.policy import PolicySource
from tokprune_rt.tokenizer import TextOrPair

_log = logging.getLogger(__name__)
_POOL_WORKERS = 4
# What the engine decides by itself: its arithmetic is chosen by ``precision``.
_MOOT = {"attn_implementation", "device_map", "dtype", "low_cpu_mem_usage", "torch_dtype"}
_Method = TypeVar("_Method", bound=Callable[..., Any])


def renamed(**names: str) -> Callable[[_Method], _Method]:
    """Let a function take old names of its keyword arguments; the new name wins."""

    def decorate(method: _Method) -> _Method:
        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for old, new in names.items():
                if old in kwargs:
                    kwargs.setdefault(new, kwargs.pop(old))
                    kwargs.pop(old, None)
            return method(*args, **kwargs)

        return cast(_Method, wrapper)

    return decorate


class ModelCard:
    """What evaluators read and write of a model's card: its origin and its scores."""

    def __init__(self, base_model: str) -> None:
        self.base_model = base_model
        self.evaluations: list[dict[str, Any]] = []

    def set_evaluation_metrics(
        self, evaluator: Any, metrics: Mapping[str, Any], epoch: int = 0, step: int = 0
    ) -> None:
        """Keep an evaluator's results in `evaluations`."""
        name = getattr(evaluator, "name", "") or type(evaluator).__name__
        found = {"evaluator": name, "epoch": epoch, "step": step, "metrics": dict(metrics)}
        self.evaluations.append(found)


def show_progress(asked: bool | None, log: logging.Logger) -> bool:
    """None asks the logger: a bar at INFO and DEBUG."""
    if asked is None:
        return log.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
    return bool(asked)


def is_collection(inputs: object) -> bool:
    """Whether ``inputs`` are many; what is neither these nor a text is refused later."""
    single = isinstance(inputs, str | bytes | Mapping | Set) or not hasattr(inputs, "__len__")
    return not single and isinstance(inputs, Iterable)


def check_cpu(device: Any, name: str = "device") -> None:
    """ValueError unless ``device`` is None or a CPU; a list is a list of such devices."""
    if isinstance(device, list | tuple):
        for item in device:
            check_cpu(item, name)
    elif device is not None and str(device).partition(":")[0] != "cpu":
        raise ValueError(f'{name} must be "cpu" or None, this engine runs on CPUs; got {device!r}')


class TextModel:
    """A `tokprune_rt.Model` behind the conventions of sentence-transformers' models."""

    _default_prompts: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | None = None,
        *,
        modules: Any = None,
        device: Any = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        backend: str = "torch",
        policy: PolicySource = "off",
        profile: str | None = None,
        precision: str = "auto",
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        if modules is not None or model_name_or_path is None:
            raise ValueError(
                f"{type(self).__name__} needs model_name_or_path; for other modules put a "
                "TokpruneTransformer of tokprune_rt.integrations.sentence_module into "
                "sentence_transformers.SentenceTransformer(modules=...)"
            )
        check_cpu(device)
        limits = dict(processor_kwargs or {})
        length = limits.pop("model_max_length", None)
        for argument, values in (
            ("model_kwargs", set(model_kwargs or {}) - _MOOT),
            ("processor_kwargs", set(limits)),
            ("config_kwargs", set(config_kwargs or {})),
        ):
            if values:
                raise ValueError(
                    f"{argument} {', '.join(sorted(values))} is not supported: the folder's files "
                    "say what the model is"
                )
        hub = {
            "cache_dir": cache_folder,
            "revision": revision,
            "token": token,
            "local_files_only": local_files_only,
        }
        settings = Settings(model_name_or_path, policy, profile, precision, threads, isa)
        self._open(settings, {key: value for key, value in hub.items() if value})
        self.trust_remote_code, self.backend = trust_remote_code, backend
        if length is not None:
            self.max_seq_length = length
        self._set_prompts(prompts, default_prompt_name)

    def _open(self, settings: Settings, hub: Mapping[str, Any]) -> None:
        self._settings, self._hub = settings, dict(hub)
        self.model = settings.load(hub)
        self.profile = settings.profile
        self.model_card_data = ModelCard(self.model.name)

    def _set_prompts(self, prompts: Mapping[str, str] | None, default: str | None) -> None:
        found = self._default_prompts | self.model.prompts | dict(prompts or {})
        self.prompts: dict[str, str] = found
        self.default_prompt_name = default or self.model.setup.default_prompt_name
        if self.default_prompt_name is not None and self.default_prompt_name not in found:
            raise ValueError(
                f"default_prompt_name {self.default_prompt_name!r} is none of the prompts "
                f"{', '.join(found)}"
            )

    def __getstate__(self) -> dict[str, Any]:
        # The copy loads the model again, so it takes the name and the settings that can change.
        changed = self.max_seq_length, self.model.setup.include_prompt
        state = self.__dict__ | {"model": changed}
        state.pop("tokenizer", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.model = self._settings.load(self._hub)
        self.max_seq_length, include_prompt = state["model"]
        self.model.setup = replace(self.model.setup, include_prompt=include_prompt)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    def _resolve_prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        if prompt is not None:
            if not isinstance(prompt, str):
                raise TypeError(f"prompt must be a str, got {type(prompt).__name__}")
            if prompt_name is not None:
                _log.warning("prompt_name %r is ignored, prompt is given", prompt_name)
            return prompt
        name = prompt_name if prompt_name is not None else self.default_prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            raise ValueError(
                f"prompt_name {name!r} is unknown; this model has: {', '.join(self.prompts)}"
            )
        return self.prompts[name]

    @property
    def policy_hash(self) -> str:
        """Identifies the pruning policy (``"off"``: none); store it with an index."""
        return self.model.policy_hash

    @property
    def device(self) -> Any:
        """``torch.device("cpu")``."""
        return _torch().device("cpu")

    @property
    def dtype(self) -> Any:
        """``torch.float32``, the type of results."""
        return _torch().float32

    def to(self, device: Any) -> Any:
        """The model itself; ValueError for anything but a CPU."""
        check_cpu(device)
        return self

    def cpu(self) -> Any:
        """The model itself."""
        return self

    def eval(self) -> Any:
        """The model itself, which never trains."""
        return self

    @property
    def max_seq_length(self) -> int:
        """Tokens to which inputs are cut; None sets it to what the model can take."""
        return self.model.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None:
        self.model.max_seq_length = length

    def get_max_seq_length(self) -> int:
        """`max_seq_length` by its old name."""
        return self.max_seq_length

    @property
    def modalities(self) -> list[str]:
        """``["text"]``."""
        return ["text"]

    def get_model_kwargs(self) -> list[str]:
        """Further keyword arguments that inference takes: none."""
        return []

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer as transformers loads it; inference does not use it."""
        loader = require("transformers", "sentence-transformers").AutoTokenizer
        return loader.from_pretrained(
            self.model.setup.encoder_folder, model_max_length=self.max_seq_length
        )

    def preprocess(
        self, inputs: list[TextOrPair], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """int64 tensors ``input_ids``, ``token_type_ids``, ``attention_mask`` [n, longest]."""
        return features.preprocess(self.model, inputs, prompt)

    @renamed(texts="inputs")
    def tokenize(self, inputs: list[TextOrPair], **kwargs: Any) -> dict[str, Any]:
        """`preprocess` by its old name."""
        return self.preprocess(inputs, **kwargs)

    def start_multi_process_pool(self, target_devices: list[str] | None = None) -> pool.Pool:
        """Start processes with a copy of the model each, one per device (all of them ``"cpu"``).

        They share the threads of this model between them. Returns what `stop_multi_process_pool`
        and ``pool=`` take.
        """
        devices = ["cpu"] * _POOL_WORKERS if target_devices is None else target_devices
        check_cpu(devices, "target_devices")
        if not devices:
            raise ValueError("target_devices is empty")
        worker = object.__new__(type(self))
        threads = max(1, self.model.threads // len(devices))
        worker.__dict__.update(self.__getstate__())
        worker._settings = replace(self._settings, threads=threads)
        return pool.start(_Worker(worker), len(devices))

    @staticmethod
    def stop_multi_process_pool(pool_: pool.Pool) -> None:
        """End the processes of a pool."""
        pool.stop(pool_)

    def _in_pool(
        self,
        running: pool.Pool | None,
        devices: Any,
        inputs: list[Any],
        chunk_size: int | None,
        show: bool,
        options: dict[str, Any],
        join: Callable[[list[Any]], Any],
    ) -> Any:
        started = running or self.start_multi_process_pool(list(devices))
        try:
            return pool.run(started, inputs, chunk_size, show, options, join)
        finally:
            if running is None:
                pool.stop(started)

    def evaluate(self, evaluator: Callable[..., Any], output_path: str | None = None) -> Any:
        """Run one of sentence-transformers' evaluators; its results."""
        if output_path is not None:
            os.makedirs(output_path, exist_ok=True)
        return evaluator(self, output_path)

    def _saved(self) -> dict[str, Any]:
        return {
            "model_type": type(self).__name__,
            "prompts": self.prompts,
            "default_prompt_name": self.default_prompt_name,
        }

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: list[str] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write a folder that loads here and, dense, in sentence-transformers.

        The files of the model are copied, its card included; the other arguments change nothing.
        Raises NotADirectoryError when ``path`` is a file.
        """
        saving.save_model(self.model, path, self._saved())

    save = save_pretrained


class _Worker:
    """Carries an unloaded model into a process, where it loads on arrival."""

    def __init__(self, model: TextModel) -> None:
        self._kind, self._state = type(model), model.__dict__

    def infer(self, inputs: list[Any], **options: Any) -> Any:
        if not hasattr(self, "_model"):
            self._model = object.__new__(self._kind)
            self._model.__setstate__(self._state)
        return self._model._infer(inputs, **options)  # type: ignore[attr-defined]
