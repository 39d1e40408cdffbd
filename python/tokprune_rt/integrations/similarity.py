"""Similarities of embeddings as PyTorch tensors, as sentence-transformers defines them."""

from __future__ import annotations

from typing import Any

from tokprune_rt.integrations.extras import torch as _torch

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


def similarity_name(value: Any) -> str | None:
    """The name of a similarity given by name or as sentence-transformers' SimilarityFunction."""
    name = getattr(value, "value", value)
    if name is not None and name not in SIMILARITIES:
        known = ", ".join(SIMILARITIES)
        raise ValueError(f"similarity_fn_name must be one of {known}, got {name!r}")
    return None if name is None else str(name)


def _tensor(values: Any) -> Any:
    torch = _torch()
    if isinstance(values, list) and values and isinstance(values[0], torch.Tensor):
        values = torch.stack(values)
    elif isinstance(values, list):
        import numpy as np

        arrays = bool(values) and all(isinstance(value, np.ndarray) for value in values)
        values = torch.from_numpy(np.stack(values)) if arrays else torch.tensor(values)
    elif not isinstance(values, torch.Tensor):
        values = torch.as_tensor(values)
    if values.is_floating_point() and torch.finfo(values.dtype).bits < 32:
        values = values.float()
    return values


def similarity(name: str, embeddings1: Any, embeddings2: Any) -> Any:
    """Tensor [n, m] of all pairs of embeddings [n, d] and [m, d]; [d] stands for [1, d]."""
    torch = _torch()
    a, b = (t.unsqueeze(0) if t.dim() == 1 else t for t in map(_tensor, (embeddings1, embeddings2)))
    if name == "cosine":
        unit = torch.nn.functional.normalize
        return unit(a, dim=-1) @ unit(b, dim=-1).T
    if name == "dot":
        return a @ b.T
    return -torch.cdist(a, b, p=2.0 if name == "euclidean" else 1.0)


def similarity_pairwise(name: str, embeddings1: Any, embeddings2: Any) -> Any:
    """Tensor [n] of embeddings [n, d] row by row."""
    torch = _torch()
    a, b = _tensor(embeddings1), _tensor(embeddings2)
    if name == "cosine":
        unit = torch.nn.functional.normalize
        return (unit(a, dim=-1) * unit(b, dim=-1)).sum(dim=-1)
    if name == "dot":
        return (a * b).sum(dim=-1)
    return -torch.linalg.vector_norm(a - b, ord=2 if name == "euclidean" else 1, dim=-1)
