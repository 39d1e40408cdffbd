"""Every kernel of the manifest has tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tokprune_rt import _core


def test_every_kernel_of_the_manifest_is_tested() -> None:
    tests = [
        node.name
        for path in Path(__file__).parent.glob("test_kernels*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    names: list[str] = _core.kernels.names
    # gemm is not tested by a test of gemm_int8: the longest name counts.
    matches = [[n for n in names if test.startswith(f"test_{n}_")] for test in tests]
    tested = {max(found, key=len) for found in matches if found}
    assert tested == set(names), f"no test_<kernel>_... function for {set(names) - tested}"
    assert "gemm" in names


def test_every_level_has_a_register_tile() -> None:
    levels = _core.isa_levels()
    assert levels[0] == "scalar"
    assert all(_core.kernels.gemm_rows(level) >= 1 for level in levels)


def test_bf16_products_are_the_default_where_they_are_fast() -> None:
    """Intel's without tiles are slower than float32, so there VNNI alone is preferred."""
    levels = _core.isa_levels()
    if "avx512_bf16" not in levels:
        pytest.skip("no AVX512-BF16 here")
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    vnni, bf16 = levels.index("avx512_vnni"), levels.index("avx512_bf16")
    assert (bf16 < vnni) == ("GenuineIntel" in facts)
    assert {vnni, bf16} == {
        len(levels) - 2 - ("amx" in levels),
        len(levels) - 1 - ("amx" in levels),
    }


def test_levels_with_matrix_tiles_and_bfloat16_products() -> None:
    levels = _core.isa_levels()
    assert [level for level in levels if _core.kernels.has_tiles(level)] in ([], ["amx"])
    with_bf16 = {level for level in levels if _core.kernels.has_bf16(level)}
    assert with_bf16 == {"avx512_bf16", "amx"} & set(levels)
