"""The short form of benchmarks/soak.py, in a process whose memory nothing else touches."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "soak.py"
CALLS = 2000


@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_many_small_calls(precision: str) -> None:
    """Sizes on both sides of the throughput path; 32 MB are 21 KB a call after warm-up."""
    sizes = ["--calls", str(CALLS), "--longest", "64", "--batch", "16", "--threads", "2"]
    limits = ["--compare", "0.05", "--growth", "32"]
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *sizes, *limits, "--precision", precision],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    compared = re.search(rf"{CALLS} calls, .* (\d+) compared, 0 wrong", result.stdout)
    assert compared and int(compared[1]) > CALLS / 40
