"""Projects that are not dependencies of this one."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokprune_rt.errors import how_to_install


def missing(project: str, extra: str) -> ImportError:
    """The error for a project that is not installed; it names the command that installs it."""
    return ImportError(f"{project} is not installed: {how_to_install(extra)}")


def require(project: str, extra: str) -> Any:
    """The module ``project``; ImportError as `missing` when it is not installed."""
    try:
        return import_module(project)
    except ModuleNotFoundError as err:
        if err.name != project.partition(".")[0]:
            raise
        raise missing(project, extra) from err


def torch() -> Any:
    """PyTorch, which only those results need that are tensors."""
    return require("torch", "sentence-transformers")
