"""Presets of methods that need no training: top-k, SpAtten, quantile, top-p, entropy, IDF."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .checks import integer
from .preset_parts import Document, build, listed, locate, ramp, step
from .storage import FloatArray


def topk(
    *,
    layers: int,
    k: npt.ArrayLike | None = None,
    keep_rate: float = 0.7,
    locations: Sequence[int] | None = None,
    diagonal: bool = False,
    **options: Any,
) -> Document:
    """Top-k: the k tokens that receive most attention stay.

    Args:
        k: tokens left, one number or one per location. None: the schedule of the LTP paper's
            baseline; the first max(3, ceil(0.15 * layers)) layers keep all, then the kept share of
            the input falls linearly to `keep_rate`.
        keep_rate: share of the input left after the last layer when k is None; 0.01 at least.
        locations: layers that prune. None: those of the schedule; the last K layers for K counts;
            from layer 2 on for one count.
        diagonal: whether a token's attention to itself counts.
    """
    integer(1)(layers, "layers")
    if k is None:
        start = min(max(3, math.ceil(0.15 * layers)), layers - 1)
        places = list(range(start, layers)) if locations is None else list(locations)
        last = max(0.01, keep_rate)
        rates = ramp(len(places) + 1, 1.0, last)[1:]
        steps = [step(places, "ratio", ratio=rates, of="n0", round="round")]
    else:
        counts = listed(k)
        steps = [step(locate(layers, locations, counts), "topk", k=counts)]
    score = {"kind": "attn_col", "diagonal": diagonal}
    return build("topk", layers, score, steps, options)


def spatten(
    *,
    layers: int,
    start_keep: float = 0.95,
    final_keep: float = 0.7,
    decay: float = 1.0,
    **options: Any,
) -> Document:
    """SpAtten (arXiv 2012.09852): cascade pruning by attention accumulated over the layers.

    The first 15% of the layers (rounded up) keep everything; then the kept share of the input
    falls linearly.

    Args:
        start_keep: share of the input left by the first layer that prunes.
        final_keep: share of the input left by the last layer.
        decay: factor of the accumulated score before a layer's attention is added.
    """
    integer(1)(layers, "layers")
    places = list(range(min(math.ceil(0.15 * layers), layers - 1), layers))
    rates = ramp(len(places), start_keep, final_keep)
    score = {"kind": "attn_cum", "decay": decay}
    return build("spatten", layers, score, [step(places, "ratio", ratio=rates, of="n0")], options)


def quantile(
    *,
    layers: int,
    q: npt.ArrayLike = 0.1,
    locations: Sequence[int] | None = None,
    **options: Any,
) -> Document:
    """Training-free: at each location the share q of unprotected tokens that scores lowest leaves.

    Args:
        q: share that leaves, one number or one per location.
        locations: layers that prune. None: the last K layers for K shares, from layer 2 on for one.
    """
    shares = listed(q)
    steps = [step(locate(layers, locations, shares), "quantile", q=shares)]
    return build("quantile", layers, {"kind": "attn_col"}, steps, options)


def top_p(
    *,
    layers: int,
    p: npt.ArrayLike = 0.95,
    locations: Sequence[int] | None = None,
    **options: Any,
) -> Document:
    """The fewest tokens that together receive the share p of the attention stay.

    Protected tokens stay anyway and are outside the account: they would take most of the share.

    Args:
        p: share of the attention to unprotected tokens, one number or one per location.
        locations: layers that prune. None: the last K layers for K shares, from layer 2 on for one.
    """
    shares = listed(p)
    steps = [step(locate(layers, locations, shares), "top_p", p=shares)]
    return build("top-p", layers, {"kind": "attn_col"}, steps, options)


def entropy(
    *,
    layers: int,
    ratio: npt.ArrayLike = 0.9,
    locations: Sequence[int] | None = None,
    sign: int = 1,
    **options: Any,
) -> Document:
    """The tokens stay whose own attention has the highest (or lowest) entropy.

    Args:
        ratio: share of the tokens still there that stays, one number or one per location.
        locations: layers that prune. None: the last K layers for K shares, from layer 2 on for one.
        sign: 1 keeps tokens that spread their attention, -1 those that focus it.
    """
    shares = listed(ratio)
    steps = [step(locate(layers, locations, shares), "ratio", ratio=shares)]
    return build("entropy", layers, {"kind": "row_entropy", "sign": sign}, steps, options)


def static_idf(
    *,
    layers: int,
    idf: npt.ArrayLike | None = None,
    documents: Iterable[Sequence[int]] | None = None,
    vocab_size: int | None = None,
    ratio: float = 0.7,
    **options: Any,
) -> Document:
    """Static pruning after the embeddings: the rarest tokens stay, by inverse document frequency.

    The table travels in the document under "tensors".

    Args:
        idf: [vocab_size] importance of each token id.
        documents: instead of `idf`, the token ids of sample documents, from which it is counted
            (see `idf_table`); needs `vocab_size`, the rows of the model's word embedding.
        ratio: share of the input that stays, protected tokens counted.
    """
    integer(1)(layers, "layers")
    if (idf is None) == (documents is None):
        raise TypeError('preset "static-idf" needs either idf= or documents= with vocab_size=')
    if idf is not None:
        table = np.asarray(idf, np.float32)
    elif documents is not None and vocab_size is not None:
        table = idf_table(documents, vocab_size)
    else:
        raise TypeError('preset "static-idf": documents= needs vocab_size=')
    if vocab_size is not None and table.shape != (vocab_size,):
        raise ValueError(f"idf: found shape {list(table.shape)}; allowed: [{vocab_size}]")
    score = {"kind": "table", "tensor": "idf"}
    steps = [step([0], "ratio", site="embed", ratio=ratio, of="n0")]
    return build("static-idf", layers, score, steps, options, tensors={"idf": table})


def idf_table(documents: Iterable[Sequence[int]], vocab_size: int) -> FloatArray:
    """Smoothed inverse document frequency, ln((1 + N) / (1 + df)) + 1, of every token id.

    Args:
        documents: token ids of N documents.
        vocab_size: number of rows.

    Returns:
        float32 [vocab_size].

    Raises:
        ValueError: no documents, or an id outside 0..vocab_size - 1.
    """
    frequency = np.zeros(vocab_size, np.int64)
    count = 0
    for i, document in enumerate(documents):
        ids = np.unique(np.asarray(document, np.int64))
        if ids.size and not 0 <= ids[0] <= ids[-1] < vocab_size:
            wrong = ids[0] if ids[0] < 0 else ids[-1]
            raise ValueError(f"documents[{i}]: found id {wrong}; allowed: 0 to {vocab_size - 1}")
        frequency[ids] += 1
        count += 1
    if count == 0:
        raise ValueError("documents: found none; allowed: at least one")
    return (np.log((1 + count) / (1 + frequency)) + 1).astype(np.float32)
