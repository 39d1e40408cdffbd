"""`load(packed_cache=)`: what is written once is mapped later, and a folder that cannot be used."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BuildModel

import tokprune_rt
from tokprune_rt import loading
from tokprune_rt.loader import packed
from tokprune_rt.loader.packed import PackedFile

TEXTS = ["Ada wrote the first program.", "a", "Rome is in Italy."]


def never(*_: Any) -> Any:
    raise AssertionError("not to be called")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_second_load_maps_what_the_first_wrote(
    tiny: BuildModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    folder, cache = tiny("bert"), tmp_path / "new" / "cache"
    first = tokprune_rt.load(folder, precision=precision, packed_cache=cache)
    assert [path.suffix for path in cache.iterdir()] == [".tokpack"]
    # A folder that has the file may be read-only.
    monkeypatch.setattr(PackedFile, "check", never)
    monkeypatch.setattr(PackedFile, "write", never)
    second = tokprune_rt.load(folder, precision=precision, packed_cache=cache)
    np.testing.assert_array_equal(second.encode(TEXTS), first.encode(TEXTS))


def test_a_folder_that_cannot_be_used_is_told_first(
    tiny: BuildModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(loading, "load_model", never)
    for cache in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(OSError, match=f"packed_cache: no file can be written into {cache} "):
            tokprune_rt.load(tiny("bert"), packed_cache=cache)

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(packed.tempfile, "TemporaryFile", denied)
    with pytest.raises(PermissionError, match=f"into {tmp_path} \\(Permission denied\\)"):
        tokprune_rt.load(tiny("bert"), packed_cache=tmp_path)


def test_a_full_disk(tiny: BuildModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(packed, "atomic_file", full)
    with pytest.raises(OSError, match=f"packed_cache: .* into {tmp_path} \\(No space left"):
        tokprune_rt.load(tiny("bert"), packed_cache=tmp_path)


def test_a_damaged_file_is_written_anew(tiny: BuildModel, tmp_path: Path) -> None:
    folder = tiny("bert")
    vectors = tokprune_rt.load(folder, packed_cache=tmp_path).encode(TEXTS)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    again = tokprune_rt.load(folder, packed_cache=tmp_path)
    np.testing.assert_array_equal(again.encode(TEXTS), vectors)
    assert path.read_bytes() == whole
