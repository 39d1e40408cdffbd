"""The C++ tests without sanitizers, and what the compiled kernel objects contain."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from native_build import PROGRAMS, ROOT, build, cache_entry, check, forces_every_level, program

pytestmark = forces_every_level

LEVELS = sorted(path.stem for path in (ROOT / "csrc/kernels/isa").glob("*.cpp"))

# What a compiler may call on its own, and the marker of position-independent code.
IMPLICIT = {"memcpy", "memset", "memmove", "memcmp", "_GLOBAL_OFFSET_TABLE_"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("native"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_passes(built: Path, name: str) -> None:
    check([program(built, name)])


def kernel_object(built: Path, level: str) -> Path:
    objects = list(built.glob(f"CMakeFiles/kernels_{level}.dir/**/{level}.cpp.o"))
    assert len(objects) == 1
    return objects[0]


@pytest.mark.parametrize("level", LEVELS)
def test_kernel_object_exports_its_table_and_nothing_else(built: Path, level: str) -> None:
    """A weak symbol here could replace common code with instructions a lower CPU lacks."""
    listing = check([cache_entry(built, "CMAKE_NM"), "--format=posix", kernel_object(built, level)])
    symbols = [line.split()[:2] for line in listing.splitlines()]
    exported = [(name, kind) for name, kind in symbols if kind.isupper() and kind != "U"]
    assert len(exported) == 1, exported
    name, kind = exported[0]
    table = "".join(part.capitalize() for part in level.split("_"))
    assert re.search(rf"k{table}Table", name)
    assert kind in "DR"
    # Weak (w, v) and unique (u) symbols are lower case when undefined or merged by the loader.
    assert not [name for name, kind in symbols if kind in "wWvVu"]
    assert {name for name, kind in symbols if kind == "U"} <= IMPLICIT


EVEX = "%zmm|%k[0-7]|%[xy]mm(1[6-9]|2[0-9]|3[01])"
TILES = "%tmm|tilerelease|ldtilecfg"
FORBIDDEN = {
    "scalar": "%[yz]mm",
    "avx2": f"{EVEX}|vpdp",
    "avx_vnni": EVEX,
    "avx512": f"vpdp|vcvtne|vdpbf|{TILES}",
    "avx512_vnni": f"vcvtne|vdpbf|{TILES}",
    "avx512_bf16": TILES,
}


@pytest.mark.parametrize("level", LEVELS)
def test_no_instruction_of_a_higher_level(built: Path, level: str) -> None:
    code = check([cache_entry(built, "CMAKE_OBJDUMP"), "-d", kernel_object(built, level)])
    assert re.search("%[xyz]mm", code)
    assert level in FORBIDDEN or level == "amx", "say what this level may not use"
    if level in FORBIDDEN:
        assert not re.search(FORBIDDEN[level], code)
