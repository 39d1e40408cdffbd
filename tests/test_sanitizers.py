"""The C++ tests under ThreadSanitizer, and everything under AddressSanitizer and UBSan."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from native_build import PROGRAMS, build, cache_entry, check, forces_every_level, program

pytestmark = forces_every_level

THREADED = ("thread_pool", "concurrent_forward", "linear")


@pytest.fixture(scope="module")
def thread_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thread")
    return build(folder, sanitize="thread", optimise="-O1", targets=THREADED)


@pytest.fixture(scope="module")
def address_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("address"), sanitize="address,undefined", python=True)


@pytest.mark.parametrize("name", THREADED)
def test_no_data_race(thread_build: Path, name: str) -> None:
    check([program(thread_build, name)])


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_invalid_access_in_programs(address_build: Path, name: str) -> None:
    # A forked child abandons its parent's threads on purpose, which looks like a leak.
    leaks = "0" if name == "thread_pool" else "1"
    check([program(address_build, name)], env={"ASAN_OPTIONS": f"detect_leaks={leaks}"})


def test_no_invalid_access_in_the_module(address_build: Path) -> None:
    """Every level, model and plan on ragged batches, and bad input, in the sanitized module."""
    compiler = cache_entry(address_build, "CMAKE_CXX_COMPILER")
    libraries = [
        check([compiler, f"-print-file-name={name}"]).strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("this compiler has no shared runtime to load into Python")
    # Python itself is not instrumented, so the runtime and the library whose throw it watches
    # have to be there first; the interpreter's own leaks are not of interest.
    env = {
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "OPENBLAS_NUM_THREADS": "1",
    }
    script = Path(__file__).with_name("sanitized_engine.py")
    assert "done" in check([sys.executable, script, address_build], env=env)
