"""`SentenceTransformer`: sentence-transformers' class on this engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.engine import check_batch_size
from tokprune_rt.integrations import features, pool
from tokprune_rt.integrations.base import (
    TextModel,
    check_cpu,
    is_collection,
    renamed,
    show_progress,
)
from tokprune_rt.integrations.extras import torch as _torch
from tokprune_rt.integrations.quantization import (
    check_precision,
    quantization_ranges,
    quantize_embeddings,
)
from tokprune_rt.integrations.settings import vector_policy, warn_if_different
from tokprune_rt.integrations.similarity import similarity, similarity_name, similarity_pairwise
from tokprune_rt.loader.config import read_json

_log = logging.getLogger(__name__)
_OUTPUTS = ("sentence_embedding", "token_embeddings", None)
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


class SentenceTransformer(TextModel):
    """A drop-in for ``sentence_transformers.SentenceTransformer`` on CPUs.

    Arguments, results and classes of errors are those of sentence-transformers 6; names of release
    5 are taken too. torch is loaded only by what returns tensors. Beyond it: ``policy``,
    ``precision`` (of the arithmetic), ``threads`` and ``isa`` as `tokprune_rt.load` takes them, and
    ``profile``, which every call may override. Arguments that choose other weights or code
    (``modules``, other keys of ``model_kwargs``) are refused; ``backend`` and
    ``trust_remote_code`` change nothing.

    Raises:
        FileNotFoundError: nothing answers to the name.
        ModelFormatError, UnsupportedModelError, PolicyError: as `tokprune_rt.load`.
        ValueError: no sentence embedding, an unknown prompt, similarity or profile, a device that
            is no CPU, or an argument that is not supported.
    """

    _default_prompts: ClassVar[dict[str, str]] = {"query": "", "document": ""}

    @renamed(tokenizer_kwargs="processor_kwargs", use_auth_token="token")
    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | None = None,
        *,
        similarity_fn_name: Any = None,
        truncate_dim: int | None = None,
        model_card_data: Any = None,
        **loading: Any,
    ) -> None:
        name = similarity_name(similarity_fn_name)
        super().__init__(model_name_or_path, **loading)
        if self.model.dimension is None:
            raise ValueError(
                f"{self.model.name} is a {self.model.task} model without pooling, so it has no "
                "sentence embedding"
            )
        if model_card_data is not None:
            self.model_card_data = model_card_data
        self._similarity = name or similarity_name(self.model.setup.similarity) or "cosine"
        self.truncate_dim = truncate_dim
        path = self.model.folder / "config_sentence_transformers.json"
        if truncate_dim is None and path.is_file():
            self.truncate_dim = read_json(path).get("truncate_dim")
        self._made_with: dict[str, tuple[str, str | None]] = {}
        self._warned = False

    @renamed(sentences="inputs")
    def encode(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: pool.Pool | None = None,
        chunk_size: int | None = None,
        *,
        profile: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Embeddings of a text or of a collection of texts.

        Args:
            inputs: a str, or a list, tuple, array or column of them.
            prompt_name: which of `prompts` to put before every text.
            prompt: a text to put before every text; beats ``prompt_name``.
            batch_size: bounds the memory: a batch holds at most ``128 * batch_size`` tokens.
            show_progress_bar: None shows one when this module's logger is at INFO or DEBUG.
            output_value: ``"sentence_embedding"``; ``"token_embeddings"`` for one tensor
                [tokens, hidden] per text; None for a dictionary of all tensors per text.
            precision: ``"float32"``, or how to quantise: ``"int8"``, ``"uint8"``, ``"binary"``,
                ``"ubinary"``.
            convert_to_numpy: False gives a list of tensors.
            convert_to_tensor: one tensor; beats ``convert_to_numpy``.
            device: ``"cpu"``, or a list of it to run in that many processes.
            normalize_embeddings: scale every embedding to length 1, after truncation.
            truncate_dim: how many dimensions to keep; default: the model's `truncate_dim`.
            pool: what `start_multi_process_pool` returned.
            chunk_size: inputs that a process takes at a time.
            profile: the policy's profile; default: the one the model was made with.

        Returns:
            float32 [d] for a str, [n, d] for a collection, in the order given; an empty array for
            an empty collection.

        Raises:
            ValueError: an unknown keyword, prompt, precision or profile, or something that is no
                text; names its index.
        """
        unknown = sorted(set(kwargs) - {"task"})
        if unknown:
            raise ValueError(
                f"encode has no keyword {', '.join(unknown)}; this model takes no further arguments"
            )
        check_batch_size(batch_size)
        if output_value not in _OUTPUTS:
            raise KeyError(output_value)
        check_precision(precision or "float32")
        single = not is_collection(inputs)
        texts = _texts([inputs] if single else inputs)
        options: dict[str, Any] = {
            "prompt": self._resolve_prompt(prompt, prompt_name),
            "batch_size": batch_size,
            "output_value": output_value,
            "normalize": normalize_embeddings,
            "truncate_dim": self.truncate_dim if truncate_dim is None else truncate_dim,
            "profile": self.profile if profile is None else profile,
        }
        check_cpu(device)
        show = show_progress(show_progress_bar, _log)
        if texts and (pool is not None or isinstance(device, list)):
            found = self._in_pool(pool, device, texts, chunk_size, show, options, _joined)
        else:
            found = self._infer(texts, show_progress_bar=show, **options)
        quantised = precision not in ("float32", None)
        if len(found) and quantised:
            found = _quantized(found, precision, output_value)
        if output_value != "sentence_embedding":
            result: Any = found if quantised else [_tensors(item) for item in found]
        elif convert_to_tensor:
            torch = _torch()
            result = torch.from_numpy(found) if len(found) else torch.tensor([])
        elif convert_to_numpy:
            result = found if len(found) else np.array([])
        else:
            result = list(_torch().from_numpy(found)) if len(found) else []
        return result[0] if single else result

    @renamed(sentences="inputs")
    def encode_query(
        self, inputs: Any, prompt_name: str | None = None, prompt: str | None = None, **kwargs: Any
    ) -> Any:
        """`encode` with the prompt "query", if there is one and no other is asked for."""
        if prompt_name is None and prompt is None and "query" in self.prompts:
            prompt_name = "query"
        self._note("queries", kwargs.get("profile"))
        return self.encode(inputs, prompt_name, prompt, **kwargs)

    @renamed(sentences="inputs")
    def encode_document(
        self, inputs: Any, prompt_name: str | None = None, prompt: str | None = None, **kwargs: Any
    ) -> Any:
        """`encode` with the first of the prompts "document", "passage" and "corpus", likewise."""
        if prompt_name is None and prompt is None:
            prompt_name = next((name for name in _DOCUMENT_PROMPTS if name in self.prompts), None)
        self._note("documents", kwargs.get("profile"))
        return self.encode(inputs, prompt_name, prompt, **kwargs)

    def _note(self, side: str, profile: str | None) -> None:
        """Warn, once, when queries and documents are not pruned alike."""
        self._made_with[side] = vector_policy(self.model, profile or self.profile)
        if len(self._made_with) == 2 and not self._warned:
            queries, documents = self._made_with["queries"], self._made_with["documents"]
            self._warned = warn_if_different(queries, documents, stacklevel=4)

    @renamed(inputs="sentences")
    def encode_multi_process(
        self, sentences: list[str], pool: pool.Pool, *args: Any, **kwargs: Any
    ) -> NDArray[Any]:
        """`encode` with a pool, by its old name; arrays only."""
        names = "prompt_name prompt batch_size chunk_size show_progress_bar precision"
        names += " normalize_embeddings truncate_dim"
        given = dict(zip(names.split(), args, strict=False))
        result: NDArray[Any] = self.encode(sentences, pool=pool, **given, **kwargs)
        return result

    def _infer(
        self,
        texts: list[str],
        *,
        prompt: str,
        batch_size: int,
        output_value: str | None,
        normalize: bool,
        truncate_dim: int | None,
        profile: str | None,
        show_progress_bar: bool = False,
    ) -> Any:
        """float32 [n, d], or a list of arrays, or of dictionaries of arrays."""
        if output_value != "token_embeddings":
            vectors = self.model.encode(
                texts,
                normalize_embeddings=bool(normalize) and truncate_dim is None,
                batch_size=batch_size,
                profile=profile,
                prompt=prompt,
                show_progress_bar=show_progress_bar,
            )
            if truncate_dim is not None:
                vectors = np.ascontiguousarray(vectors[:, :truncate_dim])
                if normalize:
                    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
                    vectors = vectors / np.maximum(lengths, np.float32(1e-12))
            if output_value == "sentence_embedding":
                return vectors
        sequences = self.model.tokenizer.tokenize(features.prompted(texts, prompt))
        tokens = features.token_embeddings(
            self.model, sequences, profile=profile, batch_size=batch_size
        )
        if output_value == "token_embeddings":
            return tokens
        found = []
        for item, rows, vector in zip(sequences, tokens, vectors, strict=True):
            entry: dict[str, Any] = {"input_ids": item.ids.astype(np.int64)}
            if self.model.tokenizer.typed:
                entry["token_type_ids"] = item.type_ids.astype(np.int64)
            entry |= {"attention_mask": np.ones(len(item), np.int64), "modality": "text"}
            if prompt:
                entry["prompt_length"] = self.model.tokenizer.prompt_length(prompt)
            found.append(entry | {"token_embeddings": rows, "sentence_embedding": vector})
        return found

    @property
    def similarity_fn_name(self) -> str:
        """What `similarity` computes: "cosine", "dot", "euclidean" or "manhattan"."""
        return self._similarity

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: Any) -> None:
        self._similarity = similarity_name(name) or "cosine"

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Tensor [n, m] of the similarities of all pairs of [n, d] and [m, d]."""
        return similarity(self._similarity, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Tensor [n] of the similarities of [n, d] and [n, d], row by row."""
        return similarity_pairwise(self._similarity, embeddings1, embeddings2)

    def get_embedding_dimension(self) -> int:
        """Width of what `encode` returns."""
        dimension = self.model.dimension
        assert dimension is not None
        return dimension if self.truncate_dim is None else min(dimension, self.truncate_dim)

    def get_sentence_embedding_dimension(self) -> int:
        """`get_embedding_dimension` by its old name."""
        return self.get_embedding_dimension()

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Within this context embeddings are cut to ``truncate_dim`` dimensions."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """Whether a prompt's tokens count in pooling."""
        self.model.setup = replace(self.model.setup, include_prompt=bool(include_prompt))

    def _saved(self) -> dict[str, Any]:
        found = super()._saved() | {"similarity_fn_name": self.similarity_fn_name}
        return found if self.truncate_dim is None else found | {"truncate_dim": self.truncate_dim}


def _texts(inputs: Any) -> list[str]:
    # Arrays hand out numpy's own strings, columns of data frames theirs.
    texts = inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            hint = "; pairs are for CrossEncoder" if isinstance(text, tuple | list) else ""
            if isinstance(text, Iterator | Set | Mapping):
                hint = "; give the texts as a list"
            raise ValueError(f"inputs[{index}] must be a str, got {type(text).__name__}{hint}")
    return texts


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [item for part in parts for item in part]


def _quantized(found: Any, precision: str, output_value: str | None) -> Any:
    if output_value == "sentence_embedding":
        return quantize_embeddings(found, precision)
    if output_value is None:
        raise ValueError(f"precision {precision!r} needs an output_value, got None")
    ranges = None
    if precision.endswith("int8"):
        ranges = quantization_ranges(np.concatenate(found), precision)
    return [quantize_embeddings(rows, precision, ranges) for rows in found]


def _tensors(item: Any) -> Any:
    torch = _torch()
    if isinstance(item, Mapping):
        return {
            key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for key, value in item.items()
        }
    return torch.from_numpy(item)
