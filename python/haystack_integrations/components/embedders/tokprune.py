"""Embedders for Haystack, in the namespace from which it loads the parts of stored pipelines."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from tokprune_rt.integrations.extras import missing
from tokprune_rt.integrations.sentence_transformers import SentenceTransformer
from tokprune_rt.integrations.settings import Settings
from tokprune_rt.policy import PolicySource

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as err:
    raise missing("haystack-ai", "haystack") from err


class _Embedder:
    """Settings, the lazily loaded model and what both components serialise."""

    def __init__(
        self,
        model: str | os.PathLike[str] = "all-MiniLM-L6-v2",
        *,
        prefix: str = "",
        suffix: str = "",
        batch_size: int = 32,
        normalize_embeddings: bool = False,
        policy: PolicySource = "off",
        profile: str | None = None,
        precision: str = "auto",
        threads: int | None = None,
    ) -> None:
        self._settings = Settings(model, policy, profile, precision, threads)
        self.prefix, self.suffix = prefix, suffix
        self.batch_size, self.normalize_embeddings = batch_size, normalize_embeddings
        self._client: SentenceTransformer | None = None

    def warm_up(self) -> None:
        """Load the model, once."""
        if self._client is None:
            settings = self._settings
            self._client = SentenceTransformer(
                settings.model,
                policy=settings.policy,
                profile=settings.profile,
                precision=settings.precision,
                threads=settings.threads,
            )

    def _loaded(self) -> SentenceTransformer:
        self.warm_up()
        assert self._client is not None
        return self._client

    @property
    def policy_hash(self) -> str:
        """Identifies the pruning policy (``"off"``: none); store it with an index."""
        return self._loaded().policy_hash

    def _encode(self, texts: list[str], query: bool, show: bool) -> list[list[float]]:
        client = self._loaded()
        encode = client.encode_query if query else client.encode_document
        found: list[list[float]] = encode(
            [self.prefix + text + self.suffix for text in texts],
            batch_size=self.batch_size,
            normalize_embeddings=self.normalize_embeddings,
            show_progress_bar=show,
        ).tolist()
        return found

    def _meta(self) -> dict[str, Any]:
        return {"model": os.fspath(self._settings.model), "policy_hash": self.policy_hash}

    def _parameters(self) -> dict[str, Any]:
        return {
            **self._settings.to_dict(),
            "prefix": self.prefix,
            "suffix": self.suffix,
            "batch_size": self.batch_size,
            "normalize_embeddings": self.normalize_embeddings,
        }


@component
class TokpruneTextEmbedder(_Embedder):
    """Embeds one text, such as a query, with the model's query prompt where it has one."""

    def to_dict(self) -> dict[str, Any]:
        """The component for a stored pipeline; ValueError for a policy that is no JSON."""
        stored: dict[str, Any] = default_to_dict(self, **self._parameters())
        return stored

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokpruneTextEmbedder:
        """The component of a stored pipeline."""
        found: TokpruneTextEmbedder = default_from_dict(cls, data)
        return found

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """``{"embedding": list of floats, "meta": ..}``; TypeError for anything but a str."""
        if not isinstance(text, str):
            raise TypeError(
                f"TokpruneTextEmbedder takes a str, got {type(text).__name__}; for documents use "
                "TokpruneDocumentEmbedder"
            )
        return {"embedding": self._encode([text], True, False)[0], "meta": self._meta()}


@component
class TokpruneDocumentEmbedder(_Embedder):
    """Embeds documents, with the model's document prompt where it has one.

    ``meta_fields_to_embed`` are put before a document's content, joined by
    ``embedding_separator``.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "all-MiniLM-L6-v2",
        *,
        prefix: str = "",
        suffix: str = "",
        batch_size: int = 32,
        progress_bar: bool = True,
        normalize_embeddings: bool = False,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        policy: PolicySource = "off",
        profile: str | None = None,
        precision: str = "auto",
        threads: int | None = None,
    ) -> None:
        # The decorator makes another class of this one, to which super() would not belong.
        _Embedder.__init__(
            self,
            model,
            prefix=prefix,
            suffix=suffix,
            batch_size=batch_size,
            normalize_embeddings=normalize_embeddings,
            policy=policy,
            profile=profile,
            precision=precision,
            threads=threads,
        )
        self.progress_bar = progress_bar
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    def to_dict(self) -> dict[str, Any]:
        """The component for a stored pipeline; ValueError for a policy that is no JSON."""
        stored: dict[str, Any] = default_to_dict(
            self,
            **self._parameters(),
            progress_bar=self.progress_bar,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )
        return stored

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokpruneDocumentEmbedder:
        """The component of a stored pipeline."""
        found: TokpruneDocumentEmbedder = default_from_dict(cls, data)
        return found

    def _text(self, document: Document) -> str:
        values = [document.meta.get(name) for name in self.meta_fields_to_embed]
        parts = [str(value) for value in values if value is not None]
        return self.embedding_separator.join([*parts, document.content or ""])

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """``{"documents": new documents with embeddings, "meta": ..}``.

        Raises TypeError for anything but a list of documents.
        """
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise TypeError(
                "TokpruneDocumentEmbedder takes a list of Document; for a str use "
                "TokpruneTextEmbedder"
            )
        texts = [self._text(document) for document in documents]
        vectors = self._encode(texts, False, self.progress_bar) if texts else []
        found = [replace(d, embedding=v) for d, v in zip(documents, vectors, strict=True)]
        return {"documents": found, "meta": self._meta()}
