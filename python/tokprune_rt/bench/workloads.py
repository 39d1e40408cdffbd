"""What the engines are given to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.bench.texts import mixed_documents

Ids = NDArray[np.int32]
Order = Literal["arrival", "sorted"]

UNIFORM = (
    "1x16",
    "1x32",
    "1x64",
    "1x128",
    "1x256",
    "1x512",
    "8x128",
    "32x32",
    "32x128",
)
MIXED = "mixed"
ALL = "all"
DEFAULT_WORKLOADS: dict[str, tuple[str, ...]] = {
    "minilm": ("1x16", "1x128", "8x128", "32x128", "mixed64"),
    "bert-base": ("1x16", "1x128", "8x128"),
}

_MIXED_COUNT = 256
_MIXED_BATCH = 32
_UNIFORM_NAME = re.compile(r"([1-9]\d*)x([1-9]\d*)")
_MIXED_NAME = re.compile(r"mixed([1-9]\d*)?")


@dataclass(frozen=True)
class Workload:
    """Token id sequences in order of arrival, and how many go into one batch."""

    name: str
    sequences: tuple[Ids, ...]
    batch_size: int
    real_text: bool = field(default=False)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [sequences]."""
        return np.array([len(item) for item in self.sequences], np.int64)

    @property
    def tokens(self) -> int:
        """Tokens in all, no padding counted."""
        return int(self.lengths.sum())

    @property
    def uniform(self) -> bool:
        """Whether all sequences have one length, so that nothing is ever padded."""
        return bool((self.lengths == self.lengths[0]).all())

    def batches(self, order: Order = "arrival") -> list[NDArray[np.int64]]:
        """Indices of the sequences of each batch; ``sorted`` puts the longest first."""
        indices = np.arange(len(self.sequences), dtype=np.int64)
        if order == "sorted":
            indices = np.argsort(-self.lengths, kind="stable")
        return [
            indices[start : start + self.batch_size]
            for start in range(0, len(indices), self.batch_size)
        ]

    def part(self, items: NDArray[np.int64]) -> Workload:
        """Some of the sequences."""
        chosen = tuple(self.sequences[i] for i in items)
        return Workload(self.name, chosen, self.batch_size, self.real_text)

    def padded_lengths(self, order: Order = "arrival") -> NDArray[np.int64]:
        """int64 [sequences]: length of each sequence after padding its batch, in batch order."""
        return np.concatenate(
            [np.full(len(items), self.lengths[items].max()) for items in self.batches(order)]
        )


def check_workload(name: str) -> str:
    """``name`` itself; ValueError when it names no workload."""
    if not _UNIFORM_NAME.fullmatch(name) and not _MIXED_NAME.fullmatch(name):
        raise ValueError(
            f"unknown workload {name!r}; give BATCHxTOKENS such as 8x128, mixed (256 documents of "
            f"real text) or mixedN for N documents"
        )
    return name


def workload_names(shape: str, wanted: Sequence[str] | None) -> list[str]:
    """The workloads to run for a shape; None: `DEFAULT_WORKLOADS`.

    ``all`` stands for every batch x tokens, and for the mixed documents where the model is real.
    """
    if wanted is None:
        return list(DEFAULT_WORKLOADS[shape])
    names: list[str] = []
    for name in wanted:
        if name == ALL:
            names += [*UNIFORM, *([MIXED] if shape == "minilm" else [])]
        else:
            names.append(check_workload(name))
    return list(dict.fromkeys(names))


def is_mixed(name: str) -> bool:
    """Whether this workload is made of real text."""
    return _MIXED_NAME.fullmatch(name) is not None


def uniform_workload(name: str, seed: int = 0) -> Workload:
    """``BxT``: one batch of B sequences of T random token ids."""
    match = _UNIFORM_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not of the form BATCHxTOKENS")
    count, length = int(match[1]), int(match[2])
    if length > 512:
        raise ValueError(f"{name!r}: the models take at most 512 tokens")
    rng = np.random.default_rng(seed)
    ids = rng.integers(1000, 30000, (count, length), dtype=np.int32)
    ids[:, 0] = 101
    return Workload(name, tuple(ids), count)


def mixed_workload(name: str, seed: int = 0) -> Workload:
    """Real documents, cut to the 256 tokens that all-MiniLM-L6-v2 reads, in batches of 32.

    Raises FileNotFoundError where that model, whose tokenizer is used, is not to be had.
    """
    from tokprune_rt.bench.models import REAL_MODEL
    from tokprune_rt.loader import describe_model, resolve
    from tokprune_rt.tokenizer import Tokenizer

    match = _MIXED_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not of the form mixed or mixedN")
    texts = mixed_documents(int(match[1] or _MIXED_COUNT), seed)
    config, setup = describe_model(resolve(REAL_MODEL))
    tokenizer = Tokenizer(
        setup.encoder_folder,
        config.family.model_type,
        max_positions=config.max_positions,
        max_length=setup.max_seq_length,
        do_lower_case=setup.do_lower_case,
    )
    sequences = tuple(item.ids for item in tokenizer.tokenize(texts))
    return Workload(name, sequences, _MIXED_BATCH, real_text=True)
