"""`Encoder.packed`: weights that were packed once are used in place by later encoders."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_model as rm
from engine_calls import LEVELS, LEVELS_AND_PRECISIONS, batch, encoder
from kernel_memory import assert_same_bits
from numpy.typing import NDArray

from tokprune_rt import _core

Packed = NDArray[np.uint8]
KEYS = ("hidden", "pooled", "logits")


def shapes(weights: dict[str, rm.Floats]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in weights.items()}


def packed_model(
    model: str, precision: str, level: str = LEVELS[-1]
) -> tuple[rm.Config, dict[str, tuple[int, ...]], Packed]:
    """What another process would have to know: configuration, shapes, bytes."""
    shape = rm.config(**rm.MODELS[model])
    weights = rm.tensors(shape)
    source = _core.Encoder(shape, weights, 1, level, precision)
    return shape, shapes(weights), source.packed


def assert_same_results(actual: Any, expected: Any, model: str) -> None:
    sequences = batch(model, [80, 1, 33], seed=6)
    mine, theirs = (rm.forward(engine, sequences) for engine in (actual, expected))
    for key in KEYS:
        if theirs[key] is not None:
            assert_same_bits(mine[key], theirs[key], f"{model} {key}")


@pytest.mark.parametrize(("level", "precision"), LEVELS_AND_PRECISIONS)
def test_packed_weights_give_the_same_bits(level: str, precision: str) -> None:
    for model in rm.MODELS:
        shape, known, packed = packed_model(model, precision, level)
        assert packed.dtype == np.uint8 and packed.ndim == 1
        again = _core.Encoder(shape, known, 2, level, precision, packed=packed)
        assert again.precision == precision
        assert again.weight_bytes == packed.size
        assert np.shares_memory(again.packed, packed), "used in place"
        assert_same_results(again, encoder(model, level, 1, precision), model)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_one_packing_serves_every_level(precision: str) -> None:
    """The layout does not depend on the level; neither do the bytes."""
    shape, known, packed = packed_model("mpnet", precision, LEVELS[0])
    for level in LEVELS:
        assert_same_bits(packed_model("mpnet", precision, level)[2], packed, level)
        again = _core.Encoder(shape, known, 1, level, precision, packed=packed)
        assert_same_results(again, encoder("mpnet", level, 1, precision), "mpnet")


def test_packing_does_not_depend_on_the_threads() -> None:
    shape = rm.config()
    for precision in ("fp32", "bf16", "int8"):
        a, b = (
            _core.Encoder(shape, rm.tensors(shape), threads, "", precision).packed
            for threads in (1, 4)
        )
        assert_same_bits(a, b)


def test_packed_weights_are_kept_alive() -> None:
    shape, known, packed = packed_model("first", "int8")
    copy = packed.copy()
    again = _core.Encoder(shape, known, 1, "", "int8", packed=copy)
    alive = weakref.ref(copy)
    del packed, copy
    gc.collect()
    assert alive() is not None
    # Memory that was given back would soon hold something else.
    rubbish = [np.full(known["embeddings.word"], np.nan, np.float32) for _ in range(200)]
    assert_same_results(again, encoder("first", LEVELS[-1], 1, "int8"), "first")
    del rubbish, again
    gc.collect()
    assert alive() is None


def test_packed_outlives_its_encoder() -> None:
    """The array holds on to the encoder that owns the memory, through a second one as well."""
    shape, known, packed = packed_model("first", "bf16")
    expected = packed.tobytes()
    second = _core.Encoder(shape, known, 1, "", "bf16", packed=packed)
    del packed
    last = second.packed
    del second
    gc.collect()
    rubbish = [np.full(len(expected), 255, np.uint8) for _ in range(50)]
    assert last.tobytes() == expected
    del rubbish


def test_a_file_is_mapped_in_place(tmp_path: Path) -> None:
    """Read-only: an encoder never writes to weights that it was given."""
    shape, known, packed = packed_model("mpnet", "int8")
    file = tmp_path / "weights"
    file.write_bytes(packed.tobytes())
    mapped = np.memmap(file, dtype=np.uint8, mode="r")
    again = _core.Encoder(shape, known, 2, "", "int8", packed=mapped)
    assert np.shares_memory(again.packed, mapped)
    assert_same_results(again, encoder("mpnet", LEVELS[-1], 1, "int8"), "mpnet")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_wrong_sizes_are_refused(precision: str) -> None:
    shape, known, packed = packed_model("first", precision)
    more = np.concatenate([packed, packed[:64]])
    for wrong in (packed[:-1], packed[1:], packed[:64], more, packed[:1]):
        message = f"packed weights have {wrong.size} bytes; expected {packed.size}"
        with pytest.raises(ValueError, match=message):
            _core.Encoder(shape, known, 1, "", precision, packed=wrong)


def test_another_precision_is_refused() -> None:
    shape, known, _ = packed_model("first", "fp32")
    for made_for in ("fp32", "bf16", "int8"):
        packed = packed_model("first", made_for)[2]
        for read_as in {"fp32", "bf16", "int8"} - {made_for}:
            with pytest.raises(ValueError, match="packed weights have"):
                _core.Encoder(shape, known, 1, "", read_as, packed=packed)


def test_wrong_shapes_are_refused() -> None:
    shape, known, packed = packed_model("first", "int8")
    for name, size in known.items():
        missing = {key: value for key, value in known.items() if key != name}
        with pytest.raises(ValueError, match=f"tensor '{name}' is missing"):
            _core.Encoder(shape, missing, 1, "", "int8", packed=packed)
        for wrong in ((*size, 1), (size[0] + 1, *size[1:]), size[:-1], (-size[0], *size[1:])):
            # A wrong output width of a head shows in the tensor that follows, or in the size.
            with pytest.raises(ValueError, match=r"^(tensor '|packed weights have)"):
                _core.Encoder(shape, known | {name: wrong}, 1, "", "int8", packed=packed)


@pytest.mark.parametrize("wrong", [None, "60x48", (60.0, 48.0), np.zeros((60, 48), np.float32)])
def test_what_is_no_shape_is_refused(wrong: Any) -> None:
    shape, known, packed = packed_model("first", "int8")
    with pytest.raises(TypeError, match=r"embeddings\.word"):
        _core.Encoder(shape, known | {"embeddings.word": wrong}, 1, "", "int8", packed=packed)


NO_BYTES = """
import sys; sys.path.insert(0, {tests!r})
import numpy as np, random_model as rm
from tokprune_rt import _core
shape = rm.config()
known = {{name: array.shape for name, array in rm.tensors(shape).items()}}
try: _core.Encoder(shape, known, 1, "", "fp32", packed=np.empty(0, np.uint8))
except ValueError as error: print(error)
"""


def test_no_bytes_are_refused() -> None:
    script = NO_BYTES.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0
    assert result.stdout.startswith("packed weights have 0 bytes; expected ")


def test_wrong_arrays_are_refused() -> None:
    shape, known, packed = packed_model("first", "int8")
    for wrong in (packed.view(np.int8), packed[::2], packed.view(np.float32), packed.tobytes()):
        with pytest.raises(TypeError):
            _core.Encoder(shape, known, 1, "", "int8", packed=wrong)
