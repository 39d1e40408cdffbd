"""Policies that come with the package, each for one model, which is known by its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import PolicyError
from .load import load_policy
from .schema import Policy

CALIBRATED = "calibrated"
"""The name under which `load` takes them."""

_FOLDER = Path(__file__).parents[1] / "policies"


def weights_digest(folder: Path) -> str | None:
    """SHA-256 (64 hex digits) of a model folder's weights; None when they are not in one file."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shipped_policy(folder: Path) -> Policy:
    """The policy that was calibrated for the weights in ``folder``.

    Raises:
        PolicyError: the package has none for them; names the models it has policies for.
    """
    digest = weights_digest(folder)
    models = []
    for path in sorted(_FOLDER.glob("*.json")):
        policy = load_policy(path)
        if policy.provenance["weights_sha256"] == digest:
            return policy
        models.append(str(policy.provenance["base_model"]))
    raise PolicyError(
        f"no calibrated policy comes with the package for the weights in {folder}; it has them for "
        f"{', '.join(models)}. `tokprune calibrate` makes one for any model"
    )
