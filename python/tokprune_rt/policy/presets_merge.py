"""Presets that merge similar tokens or pool neighbours: ToMe, PiToMe, LTMP, pooling.

A row then stands for several tokens. By default the output of a model that pools is their mean
over sizes (`Output`), which these methods mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from .checks import integer
from .preset_parts import Document, assemble, listed, locate, step

_MERGE = {"kind": "merge"}
_POOL = {"kind": "pool"}


def tome(
    *,
    layers: int,
    ratio: npt.ArrayLike = 0.9,
    locations: Sequence[int] | None = None,
    metric: str = "keys",
    **options: Any,
) -> Document:
    """ToMe (arXiv 2210.09461): between attention and FFN, the most similar tokens merge in pairs.

    Every other token may merge into one of the rest, which keeps half of the tokens at least.

    Args:
        ratio: share of the tokens still there that is left, one number or one per location.
        locations: layers that merge. None: the last K layers for K shares, all for one.
        metric: what is compared: "keys" of attention, as in the paper, or "hidden" states, which
            stay far closer to the dense embedding in mean-pooled MiniLM.
    """
    shares = listed(ratio)
    steps = [step(locate(layers, locations, shares, start=0), "bipartite", ratio=shares)]
    return _merging("tome", layers, metric, steps, options)


def pitome(
    *,
    layers: int,
    ratio: npt.ArrayLike = 0.9,
    margin: npt.ArrayLike | None = None,
    locations: Sequence[int] | None = None,
    metric: str = "keys",
    **options: Any,
) -> Document:
    """PiToMe (arXiv 2405.16148): tokens of large groups of similar ones merge, single ones stay.

    Args:
        ratio: share of the tokens still there that is left, one number or one per location.
        margin: similarity from which tokens count as similar, one number or one per location.
            None: the paper's 0.9 - 0.9 * l / layers at layer l.
        locations: layers that merge. None: the last K layers for K shares, all for one.
        metric: what is compared, "keys" of attention or "hidden" states; see `tome`.
    """
    shares = listed(ratio)
    places = locate(layers, locations, shares, start=0)
    margins = [0.9 - 0.9 * i / layers for i in places] if margin is None else listed(margin)
    steps = [step(places, "energy_pairs", ratio=shares, margin=margins)]
    return _merging("pitome", layers, metric, steps, options)


def ltmp(
    *,
    layers: int,
    merge_theta: npt.ArrayLike | None = None,
    theta: npt.ArrayLike | None = None,
    locations: Sequence[int] | None = None,
    norm: str | None = None,
    **options: Any,
) -> Document:
    """LTMP (arXiv 2307.10780): learned thresholds, first for merging, then for dropping.

    At each location tokens whose keys are more similar than `merge_theta` merge in pairs, as in
    `tome`; of the rest those leave whose score of attention received is below `theta`.

    Args:
        merge_theta: learned threshold, one number or one per location. None: 0.85.
        theta: learned threshold, one number or one per location. None: untrained, 0.5 * l / layers
            at layer l, as in `ltp`.
        locations: layers that merge and drop. None: the last K layers for K thresholds (of
            `theta`, else of `merge_theta`), all for one.
        norm: normaliser of the score of attention, see `Score`. None: "alive", the paper's mean
            over rows and heads, but "unprotected" untrained.
    """
    similar = listed(0.85 if merge_theta is None else merge_theta)
    least = None if theta is None else listed(theta)
    longer = least if isinstance(least, list) else similar
    places = locate(layers, locations, longer, start=0)
    if least is None:
        least = [0.5 * i / layers for i in places]
    scores = {
        "similarity": {"kind": "similarity", "of": "keys"},
        "importance": {
            "kind": "attn_col",
            "norm": norm or ("unprotected" if theta is None else "alive"),
        },
    }
    merging = step(places, "bipartite", theta=similar)
    dropping = step(places, "threshold", theta=least)
    steps = [
        {**merging, "score": "similarity", "action": _MERGE},
        {**dropping, "score": "importance", "action": {"kind": "drop"}},
    ]
    return assemble("ltmp", layers, scores, steps, options, special=theta is None)


def mid_pool(
    *,
    layers: int,
    stride: int | None = None,
    ratio: float | None = None,
    layer: int | None = None,
    **options: Any,
) -> Document:
    """Half of the layers run on all tokens, the others on the means of neighbours.

    For rerankers protect the query: `protect_segment` = 0.

    Args:
        stride: tokens that become one row. None: 2, unless there is a ratio.
        ratio: instead, the share of the tokens that is left, protected ones counted.
        layer: the first layer that runs on means: they are taken after the one before it. None:
            layers // 2.
    """
    integer(1)(layers, "layers")
    first = max(1, layers // 2) if layer is None else integer(1, layers)(layer, "layer")
    if ratio is None and stride is None:
        stride = 2
    select = {"stride": stride, "ratio": ratio}
    given = {name: value for name, value in select.items() if value is not None}
    return _pooling("mid-pool", layers, step([first - 1], "pool", site="post", **given), options)


def jasper_pool(*, layers: int, ratio: float = 0.5, **options: Any) -> Document:
    """After the embeddings, neighbours become one row, as in the Jasper embedding models.

    Args:
        ratio: share of the input's tokens that is left, protected ones counted.
    """
    integer(1)(layers, "layers")
    return _pooling("jasper-pool", layers, step([0], "pool", site="embed", ratio=ratio), options)


def _merging(
    method: str, layers: int, metric: str, steps: Sequence[Document], options: Document
) -> Document:
    scores = {"similarity": {"kind": "similarity", "of": metric}}
    complete = [{**item, "score": "similarity", "action": _MERGE} for item in steps]
    return assemble(method, layers, scores, complete, options)


def _pooling(method: str, layers: int, pool: Document, options: Document) -> Document:
    complete = {**pool, "score": "uniform", "action": _POOL}
    return assemble(method, layers, {"uniform": {"kind": "uniform"}}, [complete], options)
