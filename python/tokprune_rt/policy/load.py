"""Finding and reading policies: from memory, from a JSON file or from a model folder."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import PolicyError
from .checks import mapping
from .parse import parse_policy
from .presets import PRESETS
from .schema import Policy
from .storage import JSON_NAME, TENSORS_NAME, read_json, read_tensors

PolicySource = Policy | Mapping[str, Any] | str | os.PathLike[str]
"""What `load_policy` accepts: a policy, a document, a JSON file or a model folder."""

# What `tokprune_rt.load` takes beside these.
_NAMES = ("auto", "off", "calibrated")


def _load_file(path: Path) -> Policy:
    document = mapping(read_json(path), f"{path}: $")
    beside = path.with_suffix(".safetensors")
    scores = document.get("scores")
    named = isinstance(scores, Mapping) and any(
        isinstance(score, Mapping) and "tensor" in score for score in scores.values()
    )
    # A tensor file of another name belongs to the policy only if the policy asks for tensors:
    # it might be somebody's weights.
    wanted = beside.exists() and (named or beside.name == TENSORS_NAME)
    tensors = read_tensors(beside) if wanted else {}
    try:
        return parse_policy(document, tensors)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error


def load_policy(source: PolicySource) -> Policy:
    """Loads a policy from wherever it is.

    Args:
        source: a `Policy` (returned as is), a document (see `parse_policy`), the path of a JSON
            file (its tensors lie beside it, with the suffix .safetensors) or of a model folder
            that has a `token_policy.json`.

    Raises:
        PolicyError: see `parse_policy`; also when there is no such file.
        TypeError: `source` is none of these.
    """
    if isinstance(source, Policy):
        return source
    if isinstance(source, Mapping):
        return parse_policy(source)
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise TypeError(
            f"a policy must be one of {', '.join(_NAMES)}, a path, a dict or a Policy, not {kind}"
        )
    path = Path(source)
    if not path.exists():
        raise PolicyError(f"{path}: no such policy file; {_meant(str(source))}")
    return _load_file(path / JSON_NAME if path.is_dir() else path)


def _meant(name: str) -> str:
    if name in PRESETS:
        return (
            f"{name} is a preset: --preset {name}, or in Python "
            f'tokprune_rt.policy.preset("{name}", layers=N)'
        )
    for close in difflib.get_close_matches(name, _NAMES, 1):
        return f'did you mean "{close}"?'
    return (
        f"allowed: {', '.join(_NAMES)}, a file, or a model folder with a {JSON_NAME}; published "
        "methods are presets (--preset NAME, or in Python tokprune_rt.policy.preset), and a "
        "profile is named beside its policy"
    )


def find_policy(folder: str | os.PathLike[str]) -> Policy | None:
    """The policy of a model folder, or None if it has no `token_policy.json`.

    Raises:
        PolicyError: the folder has a policy that is not valid.
    """
    path = Path(folder) / JSON_NAME
    return _load_file(path) if path.exists() else None
