"""Builds the C++ tests, and the module with sanitizers, with the CMake of the test environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
JOBS = "2"
PROGRAMS = ("allocations", "thread_pool", "concurrent_forward", "linear", "tile_kernels")

# The programs and the sanitized script force every level themselves, so one run covers them all.
forces_every_level = pytest.mark.skipif(
    bool(os.environ.get("TOKPRUNE_ISA")), reason="covers every level, whichever is forced"
)


def tool(name: str) -> str:
    """A program of this environment, else of the system. Fails the test if there is none."""
    local = Path(sysconfig.get_path("scripts")) / name
    found = str(local) if local.exists() else shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed; the `test` extra brings it")
    return found


def run(
    command: Sequence[str | Path],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(env or {})},
    )


def check(
    command: Sequence[str | Path],
    *,
    timeout: float = 300,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command that has to succeed; returns its output."""
    result = run(command, timeout=timeout, env=env)
    if "unexpected memory mapping" in result.stderr:
        # ThreadSanitizer's fixed layout clashes with strong address randomisation.
        result = run(["setarch", "-R", *command], timeout=timeout, env=env)
    output = result.stdout + result.stderr
    assert result.returncode == 0, f"{command[0]} exited {result.returncode}:\n{output[-6000:]}"
    return output


def build(
    folder: Path,
    *,
    sanitize: str = "",
    optimise: str = "-O0",
    python: bool = False,
    targets: Sequence[str] = ("all",),
) -> Path:
    """Configure and build the project with its C++ tests in ``folder``.

    Sanitized builds use ``optimise``; kernels always keep the flags they are released with.
    """
    options = {
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
        "TOKPRUNE_NATIVE_TESTS": "ON",
        "TOKPRUNE_PYTHON": "ON" if python else "OFF",
        "TOKPRUNE_SANITIZE": sanitize,
    }
    if sanitize:
        options |= {"CMAKE_BUILD_TYPE": "Debug", "CMAKE_CXX_FLAGS_DEBUG": optimise}
    if python:
        import pybind11

        options |= {"Python_EXECUTABLE": sys.executable, "pybind11_DIR": pybind11.get_cmake_dir()}
    defines = [f"-D{name}={value}" for name, value in options.items()]
    cmake = tool("cmake")
    check([cmake, "-G", "Ninja", "-S", ROOT, "-B", folder, *defines])
    check([cmake, "--build", folder, "--parallel", JOBS, "--target", *targets], timeout=900)
    return folder


def cache_entry(folder: Path, name: str) -> str:
    """A value of the build's CMakeCache.txt."""
    for line in (folder / "CMakeCache.txt").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        if key.partition(":")[0] == name:
            return value
    raise KeyError(name)


def program(folder: Path, name: str) -> Path:
    return folder / "tests" / "native" / name
