"""A transformer for scikit-learn's pipelines."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tokprune_rt.integrations.extras import missing
from tokprune_rt.integrations.sentence_transformers import SentenceTransformer
from tokprune_rt.integrations.settings import Settings
from tokprune_rt.outputs import FloatArray
from tokprune_rt.policy import PolicySource

try:
    from sklearn.base import BaseEstimator, TransformerMixin
except ImportError as err:
    raise missing("scikit-learn", "sklearn") from err


class TokpruneEncoder(TransformerMixin, BaseEstimator):
    """Texts to embeddings; nothing is learned.

    The model loads with the first `transform`, so clones and copies that go to other processes are
    cheap. The arguments are those of `tokprune_rt.load` and `SentenceTransformer.encode`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "all-MiniLM-L6-v2",
        *,
        policy: PolicySource = "off",
        profile: str | None = None,
        precision: str = "auto",
        threads: int | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        batch_size: int = 32,
    ) -> None:
        self.model = model
        self.policy = policy
        self.profile = profile
        self.precision = precision
        self.threads = threads
        self.normalize_embeddings = normalize_embeddings
        self.truncate_dim = truncate_dim
        self.batch_size = batch_size

    def _client(self) -> SentenceTransformer:
        """The model of the parameters as they are now."""
        wanted = Settings(self.model, self.policy, self.profile, self.precision, self.threads)
        loaded = getattr(self, "_loaded", None)
        if loaded is None or loaded[0] != wanted:
            client = SentenceTransformer(
                self.model,
                policy=self.policy,
                profile=self.profile,
                precision=self.precision,
                threads=self.threads,
            )
            loaded = self._loaded = (wanted, client)
        found: SentenceTransformer = loaded[1]
        return found

    @property
    def policy_hash(self) -> str:
        """Identifies the pruning policy (``"off"``: none)."""
        return self._client().policy_hash

    def fit(self, X: Any, y: Any = None) -> TokpruneEncoder:
        """Check that ``X`` are texts; nothing is learned."""
        _texts(X)
        return self

    def transform(self, X: Any) -> FloatArray:
        """Embeddings float32 [n, d] of texts [n] (a list, an array or one column of a table).

        Raises ValueError for a str, for several columns and for what is no text.
        """
        found: FloatArray = self._client().encode(
            _texts(X),
            batch_size=self.batch_size,
            normalize_embeddings=self.normalize_embeddings,
            truncate_dim=self.truncate_dim,
            show_progress_bar=False,
        )
        return found if len(found) else np.empty((0, self._width()), dtype=np.float32)

    def _width(self) -> int:
        width = self._client().get_embedding_dimension()
        return width if self.truncate_dim is None else min(width, self.truncate_dim)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """``tokpruneencoder0``, ``tokpruneencoder1``, ... as objects [d]."""
        name = type(self).__name__.lower()
        return np.array([f"{name}{index}" for index in range(self._width())], dtype=object)

    def __getstate__(self) -> Any:
        state = dict(super().__getstate__())
        state.pop("_loaded", None)
        return state

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.requires_fit = False
        tags.no_validation = True
        return tags


def _texts(X: Any) -> list[str]:
    if isinstance(X, str):
        raise ValueError("X must be a collection of texts, got a str")
    # Columns of data frames and arrays of one column are two-dimensional.
    array = np.asarray(X, dtype=object)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"X must be one column of texts, got the shape {array.shape}")
    found: list[str] = array.tolist()
    return found
