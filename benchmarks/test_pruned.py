"""Half the multiply-adds against all of them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from bench_cases import RunCase

from tokprune_rt.bench.models import SHAPES
from tokprune_rt.bench.workloads import Workload, uniform_workload


@functools.cache
def workload(name: str) -> Workload:
    return uniform_workload(name)


@pytest.mark.parametrize("mode", ["packed", "pruned"])
@pytest.mark.parametrize("name", ["1x128", "8x128", "32x32", "32x128"])
@pytest.mark.parametrize("shape", SHAPES)
def test_pruned(shape: str, name: str, mode: str, run_case: RunCase, benchmark: Any) -> None:
    run_case(shape, workload(name), "tokprune", mode)
    if mode == "pruned":
        model = SHAPES[shape]
        length = len(workload(name).sequences[0])
        linear = 4 * model.hidden**2 + 2 * model.hidden * model.intermediate
        dense = model.layers * workload(name).tokens * (linear + 2 * length * model.hidden)
        ratio = benchmark.extra_info["macs"] / dense
        benchmark.extra_info["macs_ratio"] = ratio
        assert 0.45 <= ratio <= 0.55
