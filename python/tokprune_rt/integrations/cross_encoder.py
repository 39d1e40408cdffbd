"""`CrossEncoder`: sentence-transformers' class on this engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tokprune_rt.engine import check_batch_size
from tokprune_rt.inputs import text_or_pair
from tokprune_rt.integrations import features, pool
from tokprune_rt.integrations.base import TextModel, check_cpu, renamed, show_progress
from tokprune_rt.integrations.extras import torch as _torch
from tokprune_rt.outputs import FloatArray
from tokprune_rt.policy import OFF
from tokprune_rt.tasks.classify import sequence_logits
from tokprune_rt.tasks.numeric import softmax
from tokprune_rt.tasks.rank import cascade, check_count, pair_activation

_log = logging.getLogger(__name__)


class CrossEncoder(TextModel):
    """A drop-in for ``sentence_transformers.CrossEncoder`` on CPUs.

    Arguments and results are those of sentence-transformers 6; ``policy``, ``profile``,
    ``precision``, ``threads`` and ``isa`` are added, as in `SentenceTransformer`. Without
    ``activation_fn`` a score is what the folder says, else the sigmoid for one label and the logit
    for several; an ``activation_fn`` is called with a tensor [n, labels].

    Raises:
        ValueError: a model that is no sequence classification, ``num_labels`` that are not the
            model's, or as `SentenceTransformer`.
    """

    @renamed(
        model_name="model_name_or_path",
        tokenizer_kwargs="processor_kwargs",
        tokenizer_args="processor_kwargs",
        automodel_args="model_kwargs",
        config_args="config_kwargs",
        cache_dir="cache_folder",
        default_activation_function="activation_fn",
    )
    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | None = None,
        *,
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        model_card_data: Any = None,
        **loading: Any,
    ) -> None:
        super().__init__(model_name_or_path, **loading)
        self.model.require_task("sequence-classification", "CrossEncoder")
        if num_labels is not None and num_labels != self.num_labels:
            raise ValueError(
                f"num_labels is {num_labels}, {self.model.name} has {self.num_labels}; a head of "
                "another width has to be trained first"
            )
        if max_length is not None:
            self.max_seq_length = max_length
        if model_card_data is not None:
            self.model_card_data = model_card_data
        self._activation = activation_fn
        if self._activation_name() is not None:
            pair_activation(self.model)

    def _activation_name(self) -> str | None:
        """What the folder asks for, else the sigmoid for one label and nothing for several."""
        stated = self.model.setup.pair_activation
        if stated is not None:
            return stated.rpartition(".")[2]
        return "Sigmoid" if self.num_labels == 1 else None

    @property
    def activation_fn(self) -> Callable[[Any], Any]:
        """What turns a tensor of logits into scores."""
        if self._activation is not None:
            return self._activation
        kind = getattr(_torch().nn, self._activation_name() or "Identity")
        function: Callable[[Any], Any] = kind()
        return function

    @activation_fn.setter
    def activation_fn(self, function: Callable[[Any], Any] | None) -> None:
        self._activation = function

    @property
    def max_length(self) -> int:
        """`max_seq_length` by its old name."""
        return self.max_seq_length

    @max_length.setter
    def max_length(self, length: int) -> None:
        self.max_seq_length = length

    @property
    def num_labels(self) -> int:
        """How many scores a pair has."""
        return len(self.model.labels)

    @renamed(sentences="inputs", activation_fct="activation_fn")
    def predict(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: pool.Pool | None = None,
        chunk_size: int | None = None,
        *,
        num_workers: int = 0,
        profile: str | None = None,
    ) -> Any:
        """Scores of a pair or of a collection of pairs.

        Args:
            inputs: two texts, or a list of such pairs.
            prompt_name: which of `prompts` to put before the first text of every pair.
            prompt: a text to put there; beats ``prompt_name``.
            batch_size: bounds the memory: a batch holds at most ``128 * batch_size`` tokens.
            show_progress_bar: None shows one when this module's logger is at INFO or DEBUG.
            activation_fn: called with a tensor of logits [n, labels]; default: the model's.
            apply_softmax: of models with several labels.
            convert_to_numpy: False gives a list of tensors.
            convert_to_tensor: one tensor; beats ``convert_to_numpy``.
            device: ``"cpu"``, or a list of it to run in that many processes.
            pool: what `start_multi_process_pool` returned.
            chunk_size: pairs that a process takes at a time.
            num_workers: taken and ignored, as in sentence-transformers.
            profile: the policy's profile; default: the one the model was made with.

        Returns:
            float32 [n] for one label, else [n, labels], in the order given; without the first axis
            for a single pair; an empty array for no pairs.

        Raises:
            ValueError: something is no pair of texts; names its index.
        """
        check_batch_size(batch_size)
        check_cpu(device)
        single = _is_pair(inputs)
        rows = [inputs] if single else inputs
        # A single text is classified too, as it is there.
        pairs = [_pair(row, f"inputs[{index}]") for index, row in enumerate(rows)]
        options: dict[str, Any] = {
            "prompt": self._resolve_prompt(prompt, prompt_name),
            "batch_size": batch_size,
            "profile": self.profile if profile is None else profile,
        }
        show = show_progress(show_progress_bar, _log)
        if pairs and (pool is not None or isinstance(device, list)):
            logits = self._in_pool(pool, device, pairs, chunk_size, show, options, np.concatenate)
        else:
            logits = self._infer(pairs, show_progress_bar=show, **options)
        scores = self._scores(logits, activation_fn, bool(apply_softmax))
        if convert_to_tensor:
            result: Any = _torch().from_numpy(scores) if pairs else _torch().tensor([])
        elif convert_to_numpy:
            result = scores if pairs else np.array([])
        else:
            result = list(_torch().from_numpy(scores)) if pairs else []
        return result[0] if single else result

    def _infer(
        self,
        pairs: list[Any],
        *,
        prompt: str,
        batch_size: int,
        profile: str | None,
        show_progress_bar: bool = False,
    ) -> FloatArray:
        return sequence_logits(
            self.model,
            features.prompted(pairs, prompt),
            profile=profile,
            batch_size=batch_size,
            truncate=True,
            show_progress_bar=show_progress_bar,
        )

    def _scores(
        self, logits: FloatArray, activation_fn: Callable[[Any], Any] | None, apply_softmax: bool
    ) -> FloatArray:
        function = activation_fn or self._activation
        scores: Any = logits
        if function is not None:
            scores = function(_torch().from_numpy(logits)).numpy()
        elif self._activation_name() is not None:
            scores = pair_activation(self.model)(logits)
        if self.num_labels == 1 and scores.ndim > 1:
            scores = scores[:, 0]
        if apply_softmax and scores.ndim > 1 and len(scores):
            scores = softmax(scores)
        found: FloatArray = np.ascontiguousarray(scores, dtype=np.float32)
        return found

    def _saved(self) -> dict[str, Any]:
        if self._activation is None:
            return super()._saved()
        kind = type(self._activation)
        return super()._saved() | {"activation_fn": f"{kind.__module__}.{kind.__name__}"}

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        device: Any = None,
        pool: pool.Pool | None = None,
        chunk_size: int | None = None,
        *,
        profile: str | None = None,
        rescore: int | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Documents by their score with a query; arguments as `predict`.

        ``rescore``: score so many of the best again, without pruning. They come first, in the order
        and with the scores of the dense model; the others follow as the profile scored them.

        Returns ``[{"corpus_id", "score", "text"?}, ...]``, best first, at most ``top_k``.
        Raises ValueError for a model with several labels.
        """
        if self.num_labels != 1:
            raise ValueError(
                f"rank needs a model with one label, {self.model.name} has {self.num_labels}; use "
                "predict with pairs"
            )
        check_count(rescore, "rescore")
        # What only predict knows is ignored there, too.
        for name in ("apply_softmax", "convert_to_numpy", "convert_to_tensor"):
            kwargs.pop(name, None)
        pairs = [[query, document] for document in documents]

        def score(some: list[list[str]], profile: str | None, show: bool | None) -> FloatArray:
            found: FloatArray = self.predict(
                some,
                prompt_name,
                prompt,
                batch_size,
                show,
                activation_fn,
                device=device,
                pool=pool,
                chunk_size=chunk_size,
                profile=profile,
                **kwargs,
            )
            return found

        profile = self.profile if profile is None else profile
        dense = self.model.policy is None or profile == OFF
        order, scores = cascade(
            score(pairs, profile, show_progress_bar),
            None if dense else rescore,
            lambda places: score([pairs[place] for place in places], OFF, False),
        )
        found: list[dict[str, Any]] = [
            {"corpus_id": int(place), "score": float(scores[place])} for place in order[:top_k]
        ]
        if return_documents:
            for entry in found:
                entry["text"] = documents[entry["corpus_id"]]
        return found


def _is_pair(inputs: Any) -> bool:
    if isinstance(inputs, np.ndarray):
        return inputs.size > 0 and inputs.ndim < 2
    if isinstance(inputs, list | tuple):
        return len(inputs) > 0 and not isinstance(inputs[0], list | tuple | np.ndarray)
    return not hasattr(inputs, "__len__") or isinstance(inputs, str | bytes | dict)


def _pair(row: Any, where: str) -> Any:
    try:
        return text_or_pair(row.tolist() if isinstance(row, np.ndarray) else row, where)
    except TypeError as err:
        raise ValueError(str(err)) from None
