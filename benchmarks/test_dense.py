"""Batches without padding: every engine does the same work."""

from __future__ import annotations

import functools

import pytest
from bench_cases import RunCase

from tokprune_rt.bench.models import SHAPES
from tokprune_rt.bench.peers import PEERS
from tokprune_rt.bench.workloads import UNIFORM, Workload, uniform_workload


@functools.cache
def workload(name: str) -> Workload:
    return uniform_workload(name)


@pytest.mark.parametrize("engine", [*PEERS, "tokprune"])
@pytest.mark.parametrize("name", [name for name in UNIFORM if name != "32x128"])
@pytest.mark.parametrize("shape", SHAPES)
def test_dense(shape: str, name: str, engine: str, run_case: RunCase) -> None:
    run_case(shape, workload(name), engine, "packed")
