"""Exceptions raised by this package.

Everything that is wrong with a *file* (weights, configuration, policy) is a `TokpruneError`, so
one `except` clause covers it; each class is also a `ValueError`. Wrong arguments of a call are
plain `ValueError` or `TypeError`.
"""

from __future__ import annotations

__all__ = ["ModelFormatError", "PolicyError", "TokpruneError", "UnsupportedModelError"]


def how_to_install(extra: str) -> str:
    """The commands that install one of this package's extras."""
    return f'pip install "tokprune-rt[{extra}]", or in a checkout pip install ".[{extra}]"'


class TokpruneError(Exception):
    """Base class of the errors of this package."""


class ModelFormatError(TokpruneError, ValueError):
    """A model folder has a missing, damaged or contradictory file or tensor."""


class PolicyError(TokpruneError, ValueError):
    """A pruning policy is malformed, or does not fit the model it is used with.

    The message names the JSON path, the value found there and what is allowed.
    """


class UnsupportedModelError(ModelFormatError):
    """The model is well formed, but its architecture or an option of it is not supported."""
