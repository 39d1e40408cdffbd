"""Types of the compiled extension."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

class ForwardResult(TypedDict):
    hidden: NDArray[np.float32] | None
    positions: NDArray[np.int32]
    cu_kept: NDArray[np.int32]
    pooled: NDArray[np.float32] | None
    logits: NDArray[np.float32] | None
    kept: NDArray[np.int32]
    macs: int
    trace_kept: list[list[NDArray[np.int32]]] | None
    trace_scores: list[list[NDArray[np.float32]] | None] | None
    trace_rows: list[list[NDArray[np.int32]]] | None

def isa_levels() -> list[str]: ...
def resolve_precision(precision: str, isa: str = "") -> str: ...
def default_threads() -> int: ...
def activations() -> dict[str, list[str]]: ...
def join_rows(
    similarity: NDArray[np.float32], least: int, most: int, above: float
) -> NDArray[np.int32]: ...

class Plan:
    def __init__(self, plan: dict[str, Any]) -> None: ...

class Encoder:
    def __init__(
        self,
        config: dict[str, int | float | bool | str | Sequence[str]],
        tensors: Mapping[str, NDArray[np.float32]] | Mapping[str, Sequence[int]],
        threads: int = 0,
        isa: str = "",
        precision: str = "auto",
        packed: NDArray[np.uint8] | None = None,
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def precision(self) -> str: ...
    @property
    def packed(self) -> NDArray[np.uint8]: ...
    def forward(
        self,
        input_ids: NDArray[np.int32],
        cu_seqlens: NDArray[np.int32],
        *,
        token_type_ids: NDArray[np.int32] | None = None,
        segment_ids: NDArray[np.int32] | None = None,
        protect: NDArray[np.uint8] | None = None,
        pool_skip: NDArray[np.int32] | None = None,
        plan: Plan | None = None,
        want: Literal["hidden", "pooled", "logits"] = "hidden",
        normalize: bool = False,
        trace: bool = False,
    ) -> ForwardResult: ...
