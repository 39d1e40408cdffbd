"""Real documents of mixed lengths: padded engines against packed and pruned."""

from __future__ import annotations

import pytest
from bench_cases import RunCase

from tokprune_rt.bench.peers import PEERS
from tokprune_rt.bench.workloads import Workload, mixed_workload

PADDING = [(engine, order) for order in ("arrival", "sorted") for engine in PEERS]
LADDER = [("tokprune", mode) for mode in ("padded", "packed", "pruned")]


@pytest.fixture(scope="session")
def documents(request: pytest.FixtureRequest) -> Workload:
    try:
        return mixed_workload(f"mixed{request.config.getoption('--documents')}")
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("engine", "mode"), [*PADDING, *LADDER])
def test_mixed(engine: str, mode: str, documents: Workload, run_case: RunCase) -> None:
    run_case("minilm", documents, engine, mode)
