"""Packing the keys and values of a head for bfloat16 products: the documented layout."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_memory import (
    BF16_DEPTH,
    PANEL,
    Floats,
    Guarded,
    assert_same_bits,
    from_bf16,
    pack,
    random,
    round_up,
    to_bf16,
)

from tokprune_rt import _core

WITH_BF16 = [level for level in _core.isa_levels() if _core.kernels.has_bf16(level)]
# Around the 16 rows and 32 columns of a tile, and odd numbers of rows, which have no partner.
SIZES = (1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 64, 65, 100, 257)

pytestmark = [
    pytest.mark.parametrize("level", WITH_BF16),
    pytest.mark.parametrize("with_low", [False, True]),
]


def check_packing(level: str, kernel: str, src: Floats, b: Floats, *, with_low: bool) -> None:
    """``kernel`` on poisoned memory turns ``src`` into the panels of the terms of ``b``."""
    k, n = b.shape
    high = from_bf16(to_bf16(b))
    size = round_up(n) * round_up(k, BF16_DEPTH)
    dst, low = Guarded(1, size, dtype=np.uint16), Guarded(1, size, dtype=np.uint16)
    source = Guarded.of(src, src.shape[1] + 5).array
    low_panels = low.vector if with_low else None
    getattr(_core.kernels, kernel)(level, source, dst.vector, low_panels, n, k)
    for array, term in ((dst, high), (low, b - high))[: 1 + with_low]:
        array.check()
        expected = pack(to_bf16(term), 2, BF16_DEPTH)
        assert_same_bits(array.vector.reshape(expected.shape), expected)
    if not with_low:
        low.check(0)


@pytest.mark.parametrize("k", [1, 2, 10, 16, 31, 32, 33, 48, 64, 96, 100, 128])
def test_pack_transposed_bf16_is_the_documented_layout(level: str, with_low: bool, k: int) -> None:
    for n in SIZES:
        src = random(np.random.default_rng(n), n, k)
        check_packing(level, "pack_transposed_bf16", src, src.T, with_low=with_low)


@pytest.mark.parametrize("n", [1, 2, 10, 16, 31, 32, 33, 48, 64, 96, 100, 128])
def test_pack_rows_bf16_is_the_documented_layout(level: str, with_low: bool, n: int) -> None:
    for k in SIZES:
        src = random(np.random.default_rng(k), k, n)
        check_packing(level, "pack_rows_bf16", src, src, with_low=with_low)


@pytest.mark.parametrize("kernel", ["pack_transposed_bf16", "pack_rows_bf16"])
def test_packing_rounds_ties_to_even(level: str, with_low: bool, kernel: str) -> None:
    """Halfway between two bfloat16 numbers: both terms are exact, the first is the even one."""
    steps = 2 * np.arange(PANEL * BF16_DEPTH) % 254 + 1
    src = (1 + steps * 2.0**-8).astype(np.float32).reshape(PANEL, BF16_DEPTH)
    b = src.T if kernel == "pack_transposed_bf16" else src
    check_packing(level, kernel, src, b, with_low=with_low)
