"""Independent masked reference for token pruning, in plain PyTorch.

It runs a compiled plan over a padded batch without ever removing a row: pruned tokens only leave
the alive mask. It shares no code with the engine, so agreement between the two means something.
"""

from .compare import Comparison, Mismatch, compare, compare_output, split_rows
from .masked import run
from .result import POOLING_MODES, ReferenceResult

__all__ = [
    "POOLING_MODES",
    "Comparison",
    "Mismatch",
    "ReferenceResult",
    "compare",
    "compare_output",
    "run",
    "split_rows",
]
