"""Holding other engines to the instruction set that this package is told to use.

They read environment variables when they are loaded, so the variables must be set before. A level
that an engine's library does not know is rounded down for that library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

# Level of this package -> value of the variable. A level that is missing, AMX, needs none. Below
# AVX2 there is no common level; these are the lowest. AVX512_CORE_BF16 lets oneDNN have the CPU's
# bf16 products, without which its bf16 is some twenty times slower than its fp32.
_VARIABLES: Mapping[str, Mapping[str, str]] = {
    "ONEDNN_MAX_CPU_ISA": {
        "scalar": "SSE41",
        "avx2": "AVX2",
        "avx_vnni": "AVX2_VNNI",
        "avx512": "AVX512_CORE",
        "avx512_vnni": "AVX512_CORE_BF16",
        "avx512_bf16": "AVX512_CORE_BF16",
    },
    "MKL_ENABLE_INSTRUCTIONS": {
        "scalar": "SSE4_2",
        "avx2": "AVX2",
        "avx_vnni": "AVX2_E1",
        "avx512": "AVX512",
        "avx512_vnni": "AVX512_E1",
        "avx512_bf16": "AVX512_E1",
    },
    "ATEN_CPU_CAPABILITY": {
        "scalar": "default",
        "avx2": "avx2",
        "avx_vnni": "avx2",
        "avx512": "avx512",
        "avx512_vnni": "avx512",
        "avx512_bf16": "avx512",
    },
    "CT2_FORCE_CPU_ISA": {
        "scalar": "GENERIC",
        "avx2": "AVX2",
        "avx_vnni": "AVX2",
        "avx512": "AVX512",
        "avx512_vnni": "AVX512",
        "avx512_bf16": "AVX512",
    },
}
_ALIASES = {"ONEDNN_MAX_CPU_ISA": ("DNNL_MAX_CPU_ISA", "OV_CPU_MAX_ISA")}
_HEEDED: Mapping[str, tuple[str, ...]] = {
    "torch": ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA"),
    "openvino": ("ONEDNN_MAX_CPU_ISA",),
    "ctranslate2": ("CT2_FORCE_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA"),
    "onnxruntime": (),
}
# Multiplies with MLAS, which asks the CPU and nobody else. Its fp32 stops at AVX-512.
_MLAS = {("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32")}
_AVX512 = ("avx512", "avx512_vnni", "avx512_bf16")


@dataclass(frozen=True)
class Cap:
    """Whether an engine is held to an instruction set at a precision.

    Attributes:
        held: False for an engine that uses more of the CPU than it should.
        how: for readers.
    """

    held: bool
    how: str


def _settings(isa: str) -> dict[str, str]:
    found = {}
    for name, levels in _VARIABLES.items():
        if isa in levels:
            for alias in (name, *_ALIASES.get(name, ())):
                found[alias] = levels[isa]
    return found


def _cap(engine: str, precision: str, isa: str, best: str, settings: Mapping[str, str]) -> Cap:
    if not settings:
        return Cap(True, "everything the CPU has")
    heeded = [name for name in _HEEDED[engine] if name in settings]
    text = " ".join(f"{name}={settings[name]}" for name in heeded)
    if engine in sys.modules and any(os.environ.get(name) != settings[name] for name in heeded):
        return Cap(False, "cannot be held, it was loaded before")
    if (engine, precision) not in _MLAS:
        return Cap(True, text)
    free = f"{text}; its MLAS products cannot be held" if heeded else "cannot be held"
    if isa == best or (precision == "fp32" and isa in _AVX512):
        return Cap(True, f"{free}, which makes no difference here")
    return Cap(False, free)


@contextmanager
def hold(
    isa: str | None, best: str, engines: Sequence[tuple[str, str]]
) -> Iterator[dict[tuple[str, str], Cap]]:
    """Set the variables of all engines, and restore them at the end.

    Args:
        isa: a level of this package; None: nothing is held.
        best: the highest level of this CPU.
        engines: names of `peers.PEERS` with a precision.

    Yields:
        What that does to each of them; nothing for None.
    """
    if isa is None:
        yield {}
        return
    settings = _settings(isa)
    caps = {key: _cap(*key, isa, best, settings) for key in engines}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield caps
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
