"""The reference's merging on hand-computed cases, and against rows that are really merged."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merge_plans import (
    COLUMN,
    HIDDEN,
    KEYS,
    all_pairs,
    bipartite,
    drop,
    energy_pairs,
    merge,
    plan,
    pool,
    pooling,
)
from reference import run
from reference.compare import compare
from reference.merging import Grouping, cosines, group
from transformers import AutoModel

N0 = 10


def symmetric(n: int, pairs: dict[tuple[int, int], float]) -> np.ndarray:
    """Similarities of n rows: 1 with itself, as given, else 0."""
    result = np.eye(n)
    for (i, j), value in pairs.items():
        result[i, j] = result[j, i] = value
    return result


# The sides of 0..5 with 0 protected: A is 2 and 4, B is 1, 3 and 5.
SIX = {(1, 2): 0.9, (2, 3): 0.9, (2, 5): 0.1, (1, 4): 0.2, (3, 4): 0.8, (4, 5): 0.3, (2, 4): 0.99}
SHARED = SIX | {(2, 3): 0.95}
EQUAL = {(1, 2): 0.8, (3, 4): 0.8}
# Sums with 0 protected, itself included: 2.5, 2.1, 2.0 and 1.4 for 1..4.
FOUR = {(1, 2): 0.9, (1, 3): 0.5, (1, 4): 0.1, (2, 3): 0.2, (3, 4): 0.3, (0, 4): 0.99}


def found(select: dict[str, Any], n: int, pairs: Any, protected: tuple[int, ...]) -> Grouping:
    flags = np.isin(np.arange(n), protected)
    return group(select, None if pairs is None else symmetric(n, pairs), flags, N0)


def groups(select: dict[str, Any], n: int, pairs: Any, protected: tuple[int, ...] = (0,)) -> Any:
    return [members.tolist() for members in found(select, n, pairs, protected).groups]


@pytest.mark.parametrize(
    ("select", "pairs", "expected"),
    [
        (bipartite(0.84), SIX, []),
        (bipartite(0.8), SIX, [[1, 2]]),
        (bipartite(0.6), SIX, [[1, 2], [3, 4]]),
        (bipartite(0.6), SHARED, [[2, 3, 4]]),
        (bipartite(0.1), SIX, [[1, 2], [3, 4]]),
        (bipartite(0.75, round="floor"), SIX, [[1, 2], [3, 4]]),
        (bipartite(0.75, round="round"), SIX, [[1, 2], [3, 4]]),
        (bipartite(0.5, of="n0"), SIX, [[1, 2]]),
        (bipartite(0.6, of="n0"), SIX, []),
        (bipartite(0.8), EQUAL, [[3, 4]]),
        (bipartite(theta=0.85), SIX, [[1, 2]]),
        (bipartite(theta=0.8), SIX, [[1, 2]]),
        (bipartite(theta=0.79), SIX, [[1, 2], [3, 4]]),
        (bipartite(theta=2.0), SIX, []),
        (bipartite(theta=-2.0, min_tokens=5), SIX, [[1, 2]]),
        (bipartite(theta=2.0, max_tokens=5), SIX, [[1, 2]]),
        (bipartite(1.0, max_tokens=2), SIX, [[1, 2], [3, 4]]),
    ],
)
def test_bipartite(select: dict[str, Any], pairs: Any, expected: list[list[int]]) -> None:
    assert groups(select, 6, pairs) == expected


def test_bipartite_sides() -> None:
    everything = bipartite(theta=-2.0)
    # Indices count the protected ones, which take no side.
    assert groups(everything, 6, SIX, ()) == [[0, 1, 2], [3, 4]]
    assert groups(everything, 6, SIX, (0, 3)) == [[1, 2], [4, 5]]
    assert groups(everything, 6, SIX, (1, 3, 5)) == []
    assert groups(everything, 6, SIX, (0, 2, 4)) == []
    assert groups(everything, 1, {}, ()) == []
    scores = found(everything, 6, SIX, (0, 4)).scores
    np.testing.assert_array_equal(scores, [math.nan, math.nan, 0.9, math.nan, math.nan, math.nan])


@pytest.mark.parametrize(
    ("select", "pairs", "expected"),
    [
        (all_pairs(0.84), SIX, []),
        # 4 joins 2, the most similar of all, and 1 joins 2, too; 3 then has only 5.
        (all_pairs(0.8), SIX, [[2, 4]]),
        (all_pairs(0.6), SIX, [[1, 2, 4]]),
        (all_pairs(0.5), SIX, [[1, 2, 3, 4]]),
        (all_pairs(0.2), SIX, [[1, 2, 3, 4, 5]]),
        (all_pairs(0.6), EQUAL, [[1, 2], [3, 4]]),
        (all_pairs(0.8), EQUAL, [[1, 2]]),
        # Two that others have joined do not join.
        (all_pairs(0.1), EQUAL | {(1, 3): 0.7}, [[1, 2, 5], [3, 4]]),
        (all_pairs(0.5, of="n0"), SIX, [[2, 4]]),
        (all_pairs(theta=0.95), SIX, [[2, 4]]),
        (all_pairs(theta=0.9), SIX, [[2, 4]]),
        (all_pairs(theta=0.89), SIX, [[1, 2, 3, 4]]),
        (all_pairs(theta=-2.0, min_tokens=5), SIX, [[2, 4]]),
        (all_pairs(theta=2.0, max_tokens=5), SIX, [[2, 4]]),
        (all_pairs(1.0, max_tokens=4), SIX, [[1, 2, 4]]),
    ],
)
def test_all_pairs(select: dict[str, Any], pairs: Any, expected: list[list[int]]) -> None:
    assert groups(select, 6, pairs) == expected


def test_all_pairs_scores() -> None:
    scores = found(all_pairs(0.5), 6, SIX, (0,)).scores
    np.testing.assert_array_equal(scores, [math.nan, 0.9, math.nan, 0.9, 0.99, math.nan])
    assert groups(all_pairs(0.1), 6, SIX, (0, 1, 2, 3, 4)) == []
    assert groups(all_pairs(0.1), 1, {}, ()) == []


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (energy_pairs(1.0, 0.0), []),
        (energy_pairs(0.8, 0.0), [[1, 2]]),
        (energy_pairs(0.6, 0.0), [[1, 2], [3, 4]]),
        (energy_pairs(0.1, 0.0), [[1, 2], [3, 4]]),
        (energy_pairs(0.1, 0.0, min_tokens=4), [[1, 2]]),
        (energy_pairs(0.1, 0.0, min_tokens=9), []),
        (energy_pairs(1.0, 0.0, max_tokens=3), [[1, 2], [3, 4]]),
        (energy_pairs(0.4, 0.0, of="n0"), [[1, 2]]),
        # Below the margin similarities repel: 3 rises above 2, and both 1 and 2 are nearest to it.
        (energy_pairs(0.6, 0.25), [[1, 2, 3]]),
        (energy_pairs(0.8, 0.25), [[1, 3]]),
        (energy_pairs(0.6, 0.25, alpha=0.0), [[1, 2], [3, 4]]),
    ],
)
def test_energy_pairs(select: dict[str, Any], expected: list[list[int]]) -> None:
    assert groups(select, 5, FOUR) == expected


def test_energy_pairs_of_equal_tokens() -> None:
    # The lower positions first: 0, 2 and 4 are all equally near to 1, 3 and 5.
    assert groups(energy_pairs(0.7, 0.0), 6, {}, ()) == [[0, 1]]
    assert groups(energy_pairs(0.5, 0.0), 6, {}, ()) == [[0, 1, 2, 4]]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        # 1 2 3 5 6 are free: three groups begin at 0, 1 and 3.
        (pooling(0.7), [[2, 3], [5, 6]]),
        (pooling(1.0), []),
        (pooling(0.1), [[1, 2, 3, 5, 6]]),
        (pooling(0.7, round="floor"), [[1, 2], [3, 5, 6]]),
        (pooling(0.5, of="n0"), [[2, 3], [5, 6]]),
        (pooling(1.0, of="n0"), []),
        (pooling(0.1, min_tokens=6), [[5, 6]]),
        (pooling(1.0, max_tokens=3), [[1, 2, 3, 5, 6]]),
        (pooling(1.0, max_tokens=1), [[1, 2, 3, 5, 6]]),
        (pooling(stride=2), [[1, 2], [3, 5]]),
        (pooling(stride=3), [[1, 2, 3], [5, 6]]),
        (pooling(stride=9), [[1, 2, 3, 5, 6]]),
        (pooling(stride=2, min_tokens=7), [[1, 2], [3, 5]]),
        (pooling(stride=2, max_tokens=5), [[1, 2], [3, 5]]),
        (pooling(stride=2, max_tokens=4), [[1, 2], [3, 5, 6]]),
    ],
)
def test_pool(select: dict[str, Any], expected: list[list[int]]) -> None:
    assert groups(select, 7, None, (0, 4)) == expected
    assert found(select, 7, None, (0, 4)).margin == math.inf


def test_pool_without_free_tokens() -> None:
    for select in (pooling(0.5), pooling(stride=2), pooling(stride=2, max_tokens=1)):
        assert groups(select, 3, None, (0, 1, 2)) == []
        assert groups(select, 1, None, ()) == []


def test_margins() -> None:
    def margin(select: dict[str, Any], n: int, pairs: Any) -> float:
        return found(select, n, pairs, (0,)).margin

    # One merges, and its two best partners are equally near; the other falls short by 0.1.
    assert margin(bipartite(0.8), 6, SIX) == 0
    assert margin(bipartite(0.8), 6, SIX | {(2, 3): 0.5}) == pytest.approx(0.1)
    assert margin(bipartite(theta=0.81), 6, SIX | {(2, 3): 0.5}) == pytest.approx(0.01)
    assert margin(bipartite(1.0), 6, SIX) == math.inf
    # Before 4 and 2 the next with one of them are 1 and 2; as many pairs as leave, then nothing.
    assert margin(all_pairs(0.8), 6, SIX) == pytest.approx(0.09)
    assert margin(all_pairs(0.8), 6, EQUAL) == 0
    assert margin(all_pairs(0.6), 6, EQUAL) == pytest.approx(0.8)
    assert margin(all_pairs(theta=0.85), 6, SIX) == 0
    assert margin(all_pairs(theta=0.95), 6, SIX) == pytest.approx(0.04)
    # Energies .625 .525 .5 .35: of the first three, the last two are nearest.
    assert margin(energy_pairs(0.8, 0.0), 5, FOUR) == pytest.approx(0.025)
    assert margin(energy_pairs(0.8, 0.19), 5, FOUR) == pytest.approx(0.01)
    assert margin(energy_pairs(1.0, 0.19), 5, FOUR) == math.inf


def test_cosines() -> None:
    result = cosines(np.array([[3.0, 4.0], [-6.0, -8.0], [4.0, -3.0], [0.0, 0.0]]))
    expected = [[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(result, expected, atol=1e-15)


# Whole runs

IDS = [2, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 3]


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Path]) -> Any:
    return AutoModel.from_pretrained(tiny("bert"), attn_implementation="eager").double().eval()


def physical(model: Any, ids: list[int]) -> tuple[np.ndarray, list[int], list[int]]:
    """States, positions and sizes of one BERT sequence whose rows are merged where they lie.

    After the attention of layer 0 by keys; of layer 1 by states, then a drop by column sums.
    """
    x = model.embeddings(torch.tensor([ids]))[0]
    position, size = list(range(len(ids))), [1] * len(ids)
    heads = model.config.num_attention_heads
    for index, layer in enumerate(model.encoder.layer):
        this, n = layer.attention.self, len(x)
        q, k, v = (
            linear(x).view(n, heads, -1).transpose(0, 1)
            for linear in (this.query, this.key, this.value)
        )
        logits = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        p = torch.softmax(logits + torch.tensor(size).double().log(), dim=-1)
        x = layer.attention.output((p @ v).transpose(0, 1).reshape(n, -1), x)
        column = p.sum(1).mean(0)
        if index < 2:
            vectors = k.mean(0) if index == 0 else x
            flags = np.array([at == 0 for at in position])
            joined = group(bipartite(0.7), cosines(vectors.numpy()), flags, len(ids)).groups
            inside = {i: members for members in joined for i in members.tolist()}
            lists = [inside.get(i, np.array([i])).tolist() for i in range(n)]
            lists = [members for i, members in enumerate(lists) if i == members[0]]
            share = torch.zeros(len(lists), n, dtype=torch.float64)
            for row, members in enumerate(lists):
                share[row, members] = torch.tensor([size[i] for i in members]).double()
            size = share.sum(1).long().tolist()
            share /= share.sum(1, keepdim=True)
            x, column = share @ x, share @ column
            position = [position[members[0]] for members in lists]
        if index == 1:
            count = math.ceil(0.7 * len(x)) - 1
            best = sorted(range(1, len(x)), key=lambda j: -float(column[j]))[:count]
            keep = [0, *sorted(best)]
            x = x[keep]
            position, size = [position[i] for i in keep], [size[i] for i in keep]
        x = layer.output(layer.intermediate(x), x)
    return x.numpy(), position, size


def test_masked_equals_physical_merging(model: Any) -> None:
    select = bipartite(0.7)
    steps = [merge(0, "mid", KEYS, select), merge(1, "mid", HIDDEN, select), drop(1, "mid", 0.7)]
    with torch.no_grad():
        x, position, size = physical(model, IDS)
    result = run(model, [IDS, IDS[:5]], plan(*steps), pooling=["mean"])
    assert result.positions[0].tolist() == position
    assert result.sizes[0].tolist() == size
    assert max(size) > 2 and len(size) < 8
    np.testing.assert_allclose(result.hidden[0], x, atol=1e-9)
    assert result.pooled is not None
    np.testing.assert_allclose(result.pooled[0], size @ x / sum(size), atol=1e-9)
    alone = run(model, [IDS[:5]], plan(*steps))
    np.testing.assert_allclose(alone.hidden[0], result.hidden[1], atol=1e-9)


@pytest.mark.parametrize("site", ["embed", "pre", "mid", "post"])
def test_merging_equal_tokens_loses_nothing(tiny: Callable[..., Path], site: str) -> None:
    """With the bias a row that stands for two counts as two."""
    model = AutoModel.from_pretrained(tiny("bert"), attn_implementation="eager").double().eval()
    with torch.no_grad():
        model.embeddings.position_embeddings.weight[:] = 0
    ids = [2, 11, 11, 12, 12, 13, 13, 14, 15, 15]
    pairs = plan(pool(0, site, pooling(stride=2)), protect={"token_ids": [14]})
    result, dense = run(model, [ids], pairs), run(model, [ids])
    assert result.positions[0].tolist() == [0, 1, 3, 5, 7, 8]
    assert result.sizes[0].tolist() == [1, 2, 2, 2, 1, 2]
    np.testing.assert_allclose(result.hidden[0], dense.hidden[0][result.positions[0]], atol=1e-9)
    np.testing.assert_allclose(result.pool(["mean"]), dense.pool(["mean"]), atol=1e-9)
    without = run(model, [ids], pairs | {"log_size": False})
    assert np.abs(without.hidden[0] - result.hidden[0]).max() > 1e-3


def test_scores_merge_with_their_rows(model: Any) -> None:
    """A later drop sees the mean of a group, weighted by size."""
    group_then_drop = [pool(1, "mid", pooling(stride=3)), drop(1, "mid", 1.0)]
    scores = run(model, [IDS], plan(drop(1, "mid", 1.0))).scores[1][0]
    merged = run(model, [IDS], plan(*group_then_drop)).scores[1][0]
    expected = np.full(12, math.nan)
    expected[0] = scores[0]
    expected[[1, 4, 7]] = scores[1:10].reshape(3, 3).mean(1)
    expected[10] = scores[10:].mean()
    np.testing.assert_allclose(merged, expected, atol=1e-12)
    # One more pooling: a group of three and a group of two have sizes 3 and 2.
    again = [group_then_drop[0], pool(1, "mid", pooling(stride=4)), drop(1, "mid", 1.0)]
    merged = run(model, [IDS], plan(*again)).scores[1][0]
    expected[[4, 7, 10]] = math.nan
    expected[1] = scores[1:].mean()
    np.testing.assert_allclose(merged, expected, atol=1e-12)
    cumulative = COLUMN | {"kind": "attn_cum"}
    late = run(model, [IDS], plan(pool(0, "mid", pooling(stride=3)), drop(1, "pre", 1, cumulative)))
    first = run(model, [IDS], plan(drop(0, "mid", 1.0))).scores[0][0]
    np.testing.assert_allclose(late.scores[1][0][[1, 4, 7]], first[1:10].reshape(3, 3).mean(1))


def test_what_cannot_run(model: Any) -> None:
    for wrong in (
        merge(1, "pre", KEYS, bipartite(0.5)),
        merge(1, "mid", HIDDEN, pooling(0.5)) | {"action": "pool"},
        pool(1, "mid", pooling(0.5)) | {"action": "merge"},
        pool(1, "mid", bipartite(0.5)),
        merge(1, "mid", HIDDEN, bipartite()),
        merge(1, "mid", HIDDEN, bipartite(0.5, 0.5)),
        pool(1, "mid", pooling(0.5, 2)),
    ):
        with pytest.raises(ValueError):
            run(model, [IDS], plan(wrong))


def test_a_merge_near_a_tie_ends_the_comparison(model: Any) -> None:
    result = run(model, [IDS, IDS[:7]], plan(merge(0, "mid", HIDDEN, bipartite(0.7))))
    margins = result.unseen[0]
    assert all(0 < margin < 1 for margin in margins) and result.unseen[1] == [math.inf] * 2
    found = compare(result, kept=result.kept, band=max(margins) * 1.01)
    assert [(tie.layer, tie.sequence) for tie in found.ties] == [(0, 0), (0, 1)]
    assert compare(result, kept=result.kept, band=min(margins)).agreeing == [0, 1]
