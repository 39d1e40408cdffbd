"""Quantised embeddings against sentence-transformers' own function, on the same values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokprune_rt.integrations.quantization import quantize_embeddings

sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("extra", ["none", "ranges", "calibration_embeddings"])
def test_quantisation_is_theirs(precision: str, extra: str) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(120, 37)).astype(np.float32)
    values[:, 3] = 0.5
    options: dict[str, Any] = {}
    if extra == "ranges":
        options["ranges"] = np.stack([values.min(0) / 2, values.max(0) / 2])
    elif extra == "calibration_embeddings":
        options[extra] = generator.normal(size=(200, 37)).astype(np.float32)
    expected = sentence_transformers.quantize_embeddings(values, precision, **options)
    found = quantize_embeddings(values, precision, **options)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(TypeError, match="must be floats, got int8"):
        quantize_embeddings(values.astype(np.int8), precision)
