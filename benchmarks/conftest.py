"""Fixtures: models loaded once, results verified before pytest-benchmark times them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from bench_cases import Bench, RunCase, candidate, rounds_for

from tokprune_rt.bench.checking import check
from tokprune_rt.bench.models import SHAPES
from tokprune_rt.bench.peers import PEERS, missing
from tokprune_rt.bench.precision import PRECISIONS, rival
from tokprune_rt.bench.timing import settle
from tokprune_rt.bench.workloads import Workload


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tokprune")
    group.addoption("--threads", type=int, default=None, help="threads of every engine")
    group.addoption("--precision", choices=PRECISIONS, default="fp32", help="of every engine")
    group.addoption(
        "--documents", type=int, default=256, help="documents of the mixed workload (256)"
    )


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    held = Bench(request.config.getoption("--threads"), request.config.getoption("--precision"))
    yield held
    held.close()


@pytest.fixture
def run_case(bench: Bench, benchmark: Any) -> RunCase:
    """A function that verifies and times (shape, workload, engine, mode)."""

    def run(shape: str, workload: Workload, engine: str, mode: str) -> None:
        reason = missing(engine, rival(bench.precision)) if engine in PEERS else None
        if reason is not None:
            pytest.skip(f"{engine}: {reason}")
        loaded = bench.stage(shape, workload.real_text and shape == "minilm")
        if engine not in PEERS and bench.precision in loaded.absent:
            pytest.skip(loaded.absent[bench.precision])
        entry = candidate(loaded, workload, engine, bench.precision, mode)
        checked = check(loaded, workload, entry, bench.expected(loaded, workload))
        benchmark.group = f"{SHAPES[shape].label} {workload.name}"
        benchmark.extra_info.update(
            macs=checked.macs,
            tokens=workload.tokens,
            max_diff=checked.agreement.difference if checked.agreement else None,
            checked=checked.how,
            model=loaded.label,
            precision=entry.precision,
            threads=loaded.threads,
            isa=[model.isa for model in loaded.models.values()],
        )
        rounds = rounds_for(entry)
        settle()
        benchmark.pedantic(entry.run, rounds=rounds, iterations=1)

    return run
