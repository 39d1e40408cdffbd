"""Embeddings for LangChain."""

from __future__ import annotations

from typing import Any

from tokprune_rt.integrations.extras import missing
from tokprune_rt.integrations.sentence_transformers import SentenceTransformer

try:
    from langchain_core.embeddings import Embeddings
    from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
except ImportError as err:
    raise missing("langchain-core", "langchain") from err


class TokpruneEmbeddings(BaseModel, Embeddings):
    """LangChain's ``Embeddings`` by a model of this package.

    Documents and queries get the model's own prompts, where it has any. ``model_kwargs`` go to
    `SentenceTransformer`, ``encode_kwargs`` to its ``encode_document`` and ``encode_query``
    (``query_encode_kwargs``, where given, to the latter instead), as in
    ``langchain_huggingface.HuggingFaceEmbeddings``.

    Raises as `SentenceTransformer`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)

    model_name: str = Field(default="sentence-transformers/all-MiniLM-L6-v2", alias="model")
    policy: Any = "off"
    profile: str | None = None
    precision: str = "auto"
    threads: int | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    query_encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    show_progress: bool = False

    _client: SentenceTransformer = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Load the model."""
        self._client = SentenceTransformer(
            self.model_name,
            policy=self.policy,
            profile=self.profile,
            precision=self.precision,
            threads=self.threads,
            **self.model_kwargs,
        )

    @property
    def policy_hash(self) -> str:
        """Identifies the pruning policy (``"off"``: none); store it with an index."""
        return self._client.policy_hash

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One list of floats per text."""
        options = {"show_progress_bar": self.show_progress} | self.encode_kwargs
        found: list[list[float]] = self._client.encode_document(list(texts), **options).tolist()
        return found

    def embed_query(self, text: str) -> list[float]:
        """A list of floats."""
        options = self.query_encode_kwargs or self.encode_kwargs
        found: list[float] = self._client.encode_query(text, **options).tolist()
        return found
