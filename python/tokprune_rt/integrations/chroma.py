"""An embedding function for Chroma. Importing this module makes Chroma know it by name."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.integrations.extras import missing
from tokprune_rt.integrations.sentence_transformers import SentenceTransformer
from tokprune_rt.integrations.settings import Settings, warn_if_different
from tokprune_rt.policy import PolicySource

try:
    from chromadb.api.types import Documents, EmbeddingFunction
    from chromadb.utils.embedding_functions import register_embedding_function
except ImportError as err:
    raise missing("chromadb", "chroma") from err


@register_embedding_function
class TokpruneEmbeddingFunction(EmbeddingFunction[Documents]):
    """Chroma's ``EmbeddingFunction`` by a model of this package.

    A collection stores the settings and the policy's hash; when it is opened again and the policy
    has become another one, `PolicyMismatchWarning` says so. Queries get the model's own query
    prompt. Raises as `SentenceTransformer`, and ValueError for a policy that is no JSON.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] = "all-MiniLM-L6-v2",
        *,
        normalize_embeddings: bool = False,
        policy: PolicySource = "off",
        profile: str | None = None,
        precision: str = "auto",
        threads: int | None = None,
    ) -> None:
        self._settings = Settings(model_name, policy, profile, precision, threads)
        self._stored = self._settings.to_dict()
        self.normalize_embeddings = normalize_embeddings
        self._client = SentenceTransformer(
            model_name, policy=policy, profile=profile, precision=precision, threads=threads
        )

    @property
    def policy_hash(self) -> str:
        """Identifies the pruning policy (``"off"``: none)."""
        return self._client.policy_hash

    def _rows(self, vectors: NDArray[Any]) -> list[NDArray[np.float32]]:
        return [np.asarray(vector, dtype=np.float32) for vector in vectors]

    def __call__(self, input: Documents) -> Any:
        """One float32 array per document."""
        normalize = self.normalize_embeddings
        return self._rows(self._client.encode_document(list(input), normalize_embeddings=normalize))

    def embed_query(self, input: Documents) -> Any:
        """One float32 array per query."""
        normalize = self.normalize_embeddings
        return self._rows(self._client.encode_query(list(input), normalize_embeddings=normalize))

    @staticmethod
    def name() -> str:
        """The name that a collection stores."""
        return "tokprune_rt"

    def default_space(self) -> Any:
        """``"cosine"``."""
        return "cosine"

    def supported_spaces(self) -> Any:
        """All of Chroma's."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """What `build_from_config` takes, and the policy's hash."""
        options = {key: value for key, value in self._stored.items() if key != "model"}
        return options | {
            "model_name": self._stored["model"],
            "normalize_embeddings": self.normalize_embeddings,
            "policy_hash": self.policy_hash,
        }

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> TokpruneEmbeddingFunction:
        """The function that a collection was made with."""
        options = {key: value for key, value in config.items() if key != "policy_hash"}
        found = TokpruneEmbeddingFunction(**options)
        # The profile is among the settings, so it cannot have changed.
        stored = config.get("policy_hash", "off")
        warn_if_different((found.policy_hash, None), (stored, None), stacklevel=3)
        return found

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """ValueError without a model's name."""
        if not isinstance(config.get("model_name"), str):
            raise ValueError(f"model_name must be a str, found {config.get('model_name')!r}")
