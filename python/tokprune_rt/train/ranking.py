"""How well documents are ordered by their relevance to queries.

Only queries that have a relevant document and one that is not say anything, and only they count.
Of equal scores the irrelevant document's is taken to come first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def average_precision(relevant: NDArray[np.bool_]) -> float:
    """Mean over the relevant documents of the precision down to each; ``relevant`` [n], in the
    order found."""
    places = np.flatnonzero(relevant)
    return float(np.mean(np.arange(1, len(places) + 1) / (places + 1)))


def reciprocal_rank(relevant: NDArray[np.bool_]) -> float:
    """1 / the place, from 1, of the first relevant document."""
    return 1 / float(np.flatnonzero(relevant)[0] + 1)


METRICS: dict[str, Callable[[NDArray[np.bool_]], float]] = {
    "map": average_precision,
    "mrr": reciprocal_rank,
}


def per_query(
    metric: str, scores: NDArray[Any], relevance: NDArray[Any], queries: NDArray[Any]
) -> NDArray[np.float64]:
    """The metric of every query that counts, in the order of their numbers.

    Args:
        metric: a name of `METRICS`.
        scores: [n], one for each pair of a query and a document.
        relevance: [n]; above 0.5 is relevant.
        queries: [n], which query a pair belongs to.

    Raises:
        ValueError: no query counts.
    """
    found = []
    for query in np.unique(queries):
        of_query = queries == query
        relevant = relevance[of_query] > 0.5
        if relevant.all() or not relevant.any():
            continue
        order = np.lexsort((relevant, -scores[of_query]))
        found.append(METRICS[metric](relevant[order]))
    if not found:
        count = len(np.unique(queries))
        raise ValueError(
            f"{metric} needs a query with a relevant document and one that is not; found "
            f"{count} {'query' if count == 1 else 'queries'}, none with both"
        )
    return np.array(found)
