"""Every kernel of the manifest has tests."""

from __future__ import annotations

import ast
from pathlib import Path

from tokprune_rt import _core


def test_every_kernel_of_the_manifest_is_tested() -> None:
    tests = [
        node.name
        for path in Path(__file__).parent.glob("test_kernels*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    names: list[str] = _core.kernels.names
    untested = [n for n in names if not any(t.startswith(f"test_{n}_") for t in tests)]
    assert not untested, f"no test_<kernel>_... function for {untested}"
    assert "gemm" in names


def test_every_level_has_a_register_tile() -> None:
    levels = _core.isa_levels()
    assert levels[0] == "scalar"
    assert all(_core.kernels.gemm_rows(level) >= 1 for level in levels)
