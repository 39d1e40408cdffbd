"""`Model`: text or token ids in, embeddings, predictions and traces out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.engine import Engine, check_batch_size
from tokprune_rt.inputs import protect_mask, text_list, token_sequences
from tokprune_rt.loader import LoadedModel
from tokprune_rt.outputs import FloatArray, ForwardOutput, empty_output, make_output
from tokprune_rt.policy import Policy, policy_hash
from tokprune_rt.progress import progress
from tokprune_rt.tasks import answer as _answer
from tokprune_rt.tasks import classify as _classify
from tokprune_rt.tasks import rank as _rank
from tokprune_rt.tasks import tag as _tag
from tokprune_rt.tokenizer import Tokenizer, check_text


class Model:
    """A loaded encoder with its tokenizer, head and pruning policy; see `load`.

    All methods may be called from several threads at once. Where a method takes ``profile``, None
    means the policy's own numbers and ``"off"`` runs dense.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        name: str,
        *,
        policy: Policy | None = None,
        threads: int | None = None,
        isa: str | None = None,
        precision: str = "auto",
    ) -> None:
        config, setup = loaded.config, loaded.setup
        self.name = name
        self.folder = loaded.folder
        self.config = config
        self.setup = setup
        self.policy = policy
        self.tokenizer = Tokenizer(
            setup.encoder_folder,
            config.family.model_type,
            max_positions=config.max_positions,
            max_length=setup.max_seq_length,
            do_lower_case=setup.do_lower_case,
        )
        self.engine = Engine(loaded, self.policy, threads, isa, precision)

    def __repr__(self) -> str:
        config = self.config
        parts = [
            repr(self.name),
            f"{config.architecture}, {config.layers} layers x {config.hidden}",
            f"policy={self._policy_label()}",
            f"precision={self.precision}",
            f"isa={self.isa}",
            f"threads={self.threads}",
        ]
        return f"Model({', '.join(parts)})"

    def _policy_label(self) -> str:
        if self.policy is None:
            return "off"
        return self.policy.name or self.policy_hash[:12]

    @property
    def task(self) -> str:
        """``"features"``, ``"sequence-classification"``, ``"token-classification"`` or
        ``"question-answering"``."""
        return self.config.task

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self.engine.encoder.isa

    @property
    def precision(self) -> str:
        """The arithmetic in use: what ``"auto"`` chose, or what a request fell back to."""
        return self.engine.encoder.precision

    @property
    def threads(self) -> int:
        """The number of worker threads."""
        return self.engine.encoder.threads

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self.engine.encoder.weight_bytes

    @property
    def profiles(self) -> list[str]:
        """Names for ``profile=``; ``"off"`` is always among them."""
        return self.engine.profiles

    @cached_property
    def policy_hash(self) -> str:
        """Identifies the policy (``"off"``: none); embeddings compare only when it is equal."""
        return "off" if self.policy is None else policy_hash(self.policy)

    @property
    def dimension(self) -> int | None:
        """Width of a sentence embedding; None for a model without pooling."""
        if not self.setup.pooling:
            return None
        if self.setup.dense:
            return self.setup.dense[-1].out_features
        return self.config.hidden * len(self.setup.pooling)

    @property
    def max_seq_length(self) -> int:
        """Tokens to which a text is cut; None sets it to what the model can take."""
        return self.tokenizer.max_length

    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None:
        self.tokenizer.set_max_length(length)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the head's outputs."""
        return self.config.labels

    @property
    def prompts(self) -> dict[str, str]:
        """Named texts that `encode` can put before every input."""
        return dict(self.setup.prompts)

    def require_task(self, task: str, method: str) -> None:
        """ValueError unless this model has the head that ``method`` needs."""
        if self.config.task != task:
            raise ValueError(
                f"{method} needs a {task} model; {self.name} is a {self.config.task} model "
                f"({self.config.architecture})"
            )

    def prompt_prefix(self, prompt_name: str | None, prompt: str | None = None) -> tuple[str, int]:
        """The text to put before every input, and how many of its tokens pooling leaves out.

        Raises ValueError listing the prompts for an unknown name.
        """
        prefix = self._prompt(prompt_name, prompt)
        if not prefix or self.setup.include_prompt:
            return prefix, 0
        return prefix, self.tokenizer.prompt_length(prefix)

    def _prompt(self, prompt_name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return check_text(prompt, "prompt")
        name = prompt_name if prompt_name is not None else self.setup.default_prompt_name
        if name is None:
            return ""
        if name not in self.setup.prompts:
            raise ValueError(
                f"unknown prompt_name {name!r}; this model has: "
                f"{', '.join(sorted(self.setup.prompts)) or 'none'}"
            )
        return self.setup.prompts[name]

    def encode(
        self,
        texts: str | Iterable[str],
        normalize_embeddings: bool = False,
        batch_size: int = 32,
        profile: str | None = None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = True,
        show_progress_bar: bool = False,
    ) -> FloatArray:
        """Sentence embeddings.

        Args:
            texts: a text or a collection of texts.
            normalize_embeddings: scale every embedding to length 1 (a model with a Normalize module
                always does).
            batch_size: bounds the memory: a batch holds at most ``128 * batch_size`` tokens.
            profile: the policy's profile.
            prompt_name: which of `prompts` to put before every text.
            prompt: a text to put before every text; beats ``prompt_name``.
            truncate: False refuses over-long texts instead of cutting them.
            show_progress_bar: show progress, when tqdm is installed.

        Returns:
            float32 [d] for a text, [n, d] for a collection, in the order given.

        Raises:
            TypeError: something is no text; names its index.
            ValueError: unknown profile or prompt, over-long text with ``truncate=False``, or a
                model without pooling.
        """
        if not isinstance(normalize_embeddings, bool | np.bool_):
            raise TypeError(
                f"normalize_embeddings must be a bool, got {type(normalize_embeddings).__name__}"
            )
        dimension = self.dimension
        if dimension is None:
            raise ValueError(
                f"{self.name} is a {self.config.task} model ({self.config.architecture}) without "
                "pooling, so it has no sentence embedding"
            )
        single = isinstance(texts, str)
        items = [check_text(texts, "texts")] if single else text_list(texts, "texts")
        prefix, skip = self.prompt_prefix(prompt_name, prompt)
        if prefix:
            items = [prefix + text for text in items]
        sequences = self.tokenizer.tokenize(items, truncate=truncate)
        normalize = bool(normalize_embeddings) or self.setup.normalize
        if single:
            check_batch_size(batch_size)
            plan = self.engine.plan(profile)
            result, _ = self.engine.forward(
                sequences, "pooled", plan, pool_skip=skip, normalize=normalize
            )
            vectors = result["pooled"]
            assert vectors is not None
            vector: FloatArray = vectors[0]
            return vector
        pooled = np.empty((len(items), dimension), dtype=np.float32)
        runs = self.engine.run(
            sequences,
            "pooled",
            profile=profile,
            batch_size=batch_size,
            pool_skip=skip,
            normalize=normalize,
        )
        with progress(len(items), show_progress_bar) as advance:
            for indices, result, _ in runs:
                pooled[indices] = result["pooled"]
                advance(len(indices))
        return pooled

    def forward(
        self,
        input_ids: Sequence[Sequence[int] | NDArray[Any]] | NDArray[Any],
        token_type_ids: Sequence[Sequence[int] | NDArray[Any]] | NDArray[Any] | None = None,
        profile: str | None = None,
        trace: bool = False,
        *,
        segment_ids: Sequence[Sequence[int] | NDArray[Any]] | NDArray[Any] | None = None,
        protect: Sequence[Sequence[int] | NDArray[Any]] | None = None,
    ) -> ForwardOutput:
        """Run one batch of token ids, special tokens included, without padding.

        Args:
            input_ids: a list of int sequences (or the rows of a 2-D array).
            token_type_ids: the same shape; default zeros.
            profile: the policy's profile.
            trace: also report which tokens stayed and their scores.
            segment_ids: which text of a pair each token belongs to, for policies that protect a
                segment; default: ``token_type_ids``.
            protect: 1 for every token that must stay, in addition to what the policy protects.

        Raises:
            TypeError: not a list of int sequences.
            ValueError: an empty or over-long sequence, an id outside the vocabulary, arrays that do
                not match, or an unknown profile; names the sequence and the position.
        """
        config = self.config
        sequences = token_sequences(
            input_ids,
            token_type_ids,
            segment_ids,
            vocab_size=config.vocab_size,
            type_vocab_size=config.type_vocab_size,
            max_positions=config.max_positions,
        )
        mask = protect_mask(protect, sequences)
        plan = self.engine.plan(profile)
        if not sequences:
            return empty_output(config, self.dimension, trace)
        result, bounds = self.engine.forward(
            sequences, "hidden", plan, protect=mask, normalize=self.setup.normalize, trace=trace
        )
        return make_output(
            result,
            bounds,
            hidden=config.hidden,
            intermediate=config.intermediate,
            token_head=config.head == "token",
        )

    def predict(
        self,
        texts_or_pairs: str | tuple[str, str] | Mapping[str, str] | Iterable[Any],
        profile: str | None = None,
        *,
        top_k: int | Literal["best"] | None = "best",
        raw_scores: bool = False,
        batch_size: int = 32,
        truncate: bool = True,
        show_progress_bar: bool = False,
    ) -> Any:
        """Classify texts or pairs; see `tokprune_rt.tasks.classify.predict`."""
        return _classify.predict(
            self,
            texts_or_pairs,
            profile=profile,
            top_k=top_k,
            raw_scores=raw_scores,
            batch_size=batch_size,
            truncate=truncate,
            show_progress_bar=show_progress_bar,
        )

    def tag(
        self,
        text: str | Iterable[str],
        profile: str | None = None,
        *,
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] = ("O",),
        batch_size: int = 32,
        truncate: bool = True,
    ) -> Any:
        """Label the tokens of a text; see `tokprune_rt.tasks.tag.tag`."""
        return _tag.tag(
            self,
            text,
            profile=profile,
            aggregation_strategy=aggregation_strategy,
            ignore_labels=ignore_labels,
            batch_size=batch_size,
            truncate=truncate,
        )

    def answer(
        self,
        question: str,
        context: str,
        profile: str | None = None,
        *,
        top_k: int = 1,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        doc_stride: int | None = None,
        handle_impossible_answer: bool = False,
        batch_size: int = 32,
    ) -> Any:
        """Find the answer to a question in a context; see `tokprune_rt.tasks.answer.answer`."""
        return _answer.answer(
            self,
            question,
            context,
            profile=profile,
            top_k=top_k,
            max_answer_len=max_answer_len,
            max_seq_len=max_seq_len,
            doc_stride=doc_stride,
            handle_impossible_answer=handle_impossible_answer,
            batch_size=batch_size,
        )

    def rank(
        self,
        query: str,
        docs: Iterable[str],
        profile: str | None = None,
        *,
        top_k: int | None = None,
        rescore: int | None = None,
        return_documents: bool = False,
        batch_size: int = 32,
        truncate: bool = True,
        show_progress_bar: bool = False,
    ) -> list[dict[str, Any]]:
        """Order documents by their relevance to a query; see `tokprune_rt.tasks.rank.rank`."""
        return _rank.rank(
            self,
            query,
            docs,
            profile=profile,
            top_k=top_k,
            rescore=rescore,
            return_documents=return_documents,
            batch_size=batch_size,
            truncate=truncate,
            show_progress_bar=show_progress_bar,
        )
