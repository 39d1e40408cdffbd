"""An embedding model for LlamaIndex."""

from __future__ import annotations

import asyncio
from typing import Any

from tokprune_rt.integrations.extras import missing
from tokprune_rt.integrations.sentence_transformers import SentenceTransformer

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from pydantic import Field, PrivateAttr
except ImportError as err:
    raise missing("llama-index-core", "llama-index") from err

Vector = list[float]


class TokpruneEmbedding(BaseEmbedding):
    """LlamaIndex' ``BaseEmbedding`` by a model of this package.

    Texts and queries get the model's own prompts, where it has any, and vectors have length 1
    unless ``normalize`` is False. ``to_dict`` and ``from_dict`` keep everything but a policy that
    is an object; give it as a path then. Raises as `SentenceTransformer`.
    """

    model_name: str = Field(default="sentence-transformers/all-MiniLM-L6-v2")
    policy: Any = "off"
    profile: str | None = None
    precision: str = "auto"
    threads: int | None = None
    normalize: bool = True

    _client: SentenceTransformer = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Load the model."""
        super().model_post_init(context)
        self._client = SentenceTransformer(
            self.model_name,
            policy=self.policy,
            profile=self.profile,
            precision=self.precision,
            threads=self.threads,
        )

    @classmethod
    def class_name(cls) -> str:
        """The name that serialisation stores."""
        return "TokpruneEmbedding"

    @property
    def policy_hash(self) -> str:
        """Identifies the pruning policy (``"off"``: none); store it with an index."""
        return self._client.policy_hash

    def _get_query_embedding(self, query: str) -> Vector:
        found: Vector = self._client.encode_query(
            query, normalize_embeddings=self.normalize, show_progress_bar=False
        ).tolist()
        return found

    def _get_text_embeddings(self, texts: list[str]) -> list[Vector]:
        found: list[Vector] = self._client.encode_document(
            list(texts), normalize_embeddings=self.normalize, show_progress_bar=False
        ).tolist()
        return found

    def _get_text_embedding(self, text: str) -> Vector:
        return self._get_text_embeddings([text])[0]

    async def _aget_query_embedding(self, query: str) -> Vector:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> Vector:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Vector]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
