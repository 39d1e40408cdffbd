"""`pipeline`: the text tasks of transformers' pipelines on this engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokprune_rt.integrations import saving
from tokprune_rt.integrations.base import check_cpu
from tokprune_rt.integrations.extras import require
from tokprune_rt.integrations.settings import Settings
from tokprune_rt.model import Model
from tokprune_rt.policy import PolicySource

_ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}
_HEADS = {
    "feature-extraction": None,
    "text-classification": "sequence-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
}
_BATCH = 32


def pipeline(
    task: str,
    model: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    device: Any = None,
    batch_size: int | None = None,
    policy: PolicySource = "off",
    profile: str | None = None,
    precision: str = "auto",
    threads: int | None = None,
    isa: str | None = None,
    **options: Any,
) -> Any:
    """What ``transformers.pipeline`` returns for a task, with this engine as its model.

    Args:
        task: ``"feature-extraction"``, ``"text-classification"`` (``"sentiment-analysis"``),
            ``"token-classification"`` (``"ner"``) or ``"question-answering"``. The last, which
            transformers 5 no longer has, is a `QuestionAnswering`.
        model: what `tokprune_rt.load` takes as a name.
        tokenizer: a tokenizer of transformers; default: the model's.
        device: ``"cpu"``, -1 or None.
        batch_size: texts per batch; default 32, and 1 for feature extraction, where transformers
            returns the padding of a batch as well.
        policy, precision, threads, isa: as `tokprune_rt.load`; ``policy`` is ``"off"``.
        profile: the policy's profile.
        **options: what the task's pipeline takes.

    Raises:
        KeyError: another task.
        ValueError: a model without the task's head, an unknown profile, a device that is no CPU.
        ImportError: transformers or torch are not installed.
    """
    name = _ALIASES.get(task, task)
    if name not in _HEADS:
        raise KeyError(f"unknown task {task!r}; supported are {', '.join((*_HEADS, *_ALIASES))}")
    check_cpu(None if device == -1 else device)
    loaded = Settings(model, policy, profile, precision, threads, isa).load()
    head = _HEADS[name]
    if head is not None:
        loaded.require_task(head, f"pipeline({task!r})")
    if name == "question-answering":
        return QuestionAnswering(loaded, profile, batch_size or _BATCH, **options)
    transformers = require("transformers", "transformers")
    require("torch", "transformers")
    adapter = _adapter_class(loaded.config.architecture)(loaded, profile)
    if tokenizer is None or isinstance(tokenizer, str | os.PathLike):
        folder = tokenizer or loaded.setup.encoder_folder
        tokenizer = transformers.AutoTokenizer.from_pretrained(os.fspath(folder))
        if tokenizer.model_max_length > loaded.max_seq_length:
            tokenizer.model_max_length = loaded.max_seq_length
    if batch_size is None:
        batch_size = 1 if name == "feature-extraction" else _BATCH
    return transformers.pipeline(
        name, model=adapter, tokenizer=tokenizer, device="cpu", batch_size=batch_size, **options
    )


class QuestionAnswering:
    """Answers in the form of transformers' question-answering pipeline (up to release 4)."""

    def __init__(
        self, model: Model, profile: str | None = None, batch_size: int = _BATCH, **options: Any
    ) -> None:
        self.model, self.profile = model, profile
        self.batch_size, self.options = batch_size, options

    def __call__(
        self,
        *inputs: Any,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Any:
        """Answer questions.

        Args:
            *inputs: ``{"question": .., "context": ..}`` or a list of those.
            question: a question or several, with ``context`` beside it.
            context: one for all questions, or one for each.
            **options: ``top_k``, ``doc_stride``, ``max_answer_len``, ``max_seq_len`` and
                ``handle_impossible_answer``, as `Model.answer` takes them.

        Returns:
            ``{"score", "start", "end", "answer"}`` (with ``top_k`` > 1 a list of them), in a list
            for several questions.

        Raises:
            ValueError: no question, a key that is missing, or an option that is not known.
        """
        pairs, single = _questions(inputs, question, context)
        settings = self.options | options
        try:
            found = [
                self.model.answer(asked, text, self.profile, batch_size=self.batch_size, **settings)
                for asked, text in pairs
            ]
        except TypeError as err:
            raise ValueError(str(err)) from err
        return found[0] if single else found


def _questions(
    inputs: tuple[Any, ...],
    question: str | Sequence[str] | None,
    context: str | Sequence[str] | None,
) -> tuple[list[tuple[Any, Any]], bool]:
    if question is not None and context is not None:
        if isinstance(question, str):
            asked, single = [question], True
        else:
            asked, single = list(question), False
        texts = [context] * len(asked) if isinstance(context, str) else list(context)
        if len(texts) != len(asked):
            raise ValueError(f"{len(asked)} questions come with {len(texts)} contexts")
        return list(zip(asked, texts, strict=True)), single
    single = len(inputs) == 1 and isinstance(inputs[0], Mapping)
    rows = inputs[0] if len(inputs) == 1 and not single else inputs
    pairs = []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping) or not {"question", "context"} <= set(row):
            raise ValueError(
                f'input {index} must be {{"question": .., "context": ..}}, got {row!r}'
            )
        pairs.append((row["question"], row["context"]))
    if not pairs:
        raise ValueError("there is no question; give question= and context=")
    return pairs, single


class _PipelineModel:
    """What a pipeline needs of a model: configuration, place, and a forward pass of tensors."""

    main_input_name = "input_ids"
    input_modalities = ("text",)

    def __init__(self, model: Model, profile: str | None) -> None:
        transformers = require("transformers", "transformers")
        torch = require("torch", "transformers")
        self.engine, self.profile = model, profile
        self.config = transformers.AutoConfig.from_pretrained(str(model.setup.encoder_folder))
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def can_generate(self) -> bool:
        """An encoder does not."""
        return False

    def to(self, device: Any) -> _PipelineModel:
        """The model itself; ValueError for anything but a CPU."""
        check_cpu(device)
        return self

    def eval(self) -> _PipelineModel:
        """The model itself."""
        return self

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write the encoder's files and the policy in use."""
        saving.save_encoder(self.engine, save_directory)

    def forward(
        self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, **kwargs: Any
    ) -> Any:
        """Tensors [n, longest] in, the task's ModelOutput out, zero where the mask is.

        Raises ValueError for over-long inputs, and when the policy removed tokens whose outputs
        are asked for.
        """
        torch = require("torch", "transformers")
        ids = input_ids.numpy()
        mask = np.ones(ids.shape, bool) if attention_mask is None else attention_mask.numpy() > 0
        sequences = [row[kept] for row, kept in zip(ids, mask, strict=True)]
        types = None
        if token_type_ids is not None and self.engine.tokenizer.typed:
            types = [r[m] for r, m in zip(token_type_ids.numpy(), mask, strict=True)]
        output = self.engine.forward(sequences, types, self.profile)
        logits = output.logits
        if isinstance(logits, np.ndarray):
            return _outputs().SequenceClassifierOutput(logits=torch.from_numpy(logits))
        rows = output.hidden if logits is None else logits
        padded = np.zeros((*mask.shape, rows[0].shape[-1]), dtype=np.float32)
        for index, values in enumerate(rows):
            if len(values) != len(sequences[index]):
                raise ValueError(
                    f"the pruning policy left {len(values)} of {len(sequences[index])} tokens, and "
                    'all are asked for; use profile="off" or a policy that restores what it drops'
                )
            padded[index, mask[index]] = values
        result = torch.from_numpy(padded)
        if logits is None:
            return _outputs().BaseModelOutput(last_hidden_state=result)
        return _outputs().TokenClassifierOutput(logits=result)

    __call__ = forward


def _outputs() -> Any:
    return require("transformers.modeling_outputs", "transformers")


def _adapter_class(architecture: str) -> type[_PipelineModel]:
    # Pipelines look at the name of a model's class to see whether it fits the task.
    return type(architecture, (_PipelineModel,), {})
