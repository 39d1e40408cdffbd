"""How a model is loaded, in a form that frameworks can store."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokprune_rt.loader import resolve
from tokprune_rt.loading import load
from tokprune_rt.model import Model
from tokprune_rt.policy import DEFAULT, OFF, Policy, PolicySource


class PolicyMismatchWarning(UserWarning):
    """Queries and documents were embedded under different pruning policies or profiles."""


@dataclass(frozen=True)
class Settings:
    """A model's name and how to run it; the arguments are those of `tokprune_rt.load`."""

    model: str | os.PathLike[str]
    policy: PolicySource = OFF
    profile: str | None = None
    precision: str = "auto"
    threads: int | None = None
    isa: str | None = None

    def load(self, hub: Mapping[str, Any] | None = None) -> Model:
        """Load the model and check the profile. Errors as `tokprune_rt.load`."""
        folder = resolve(self.model, hub)
        model = load(folder, self.policy, self.precision, self.threads, self.isa)
        model.name = os.fspath(self.model)
        model.engine.plan(self.profile)
        return model

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON, without those at their default.

        Raises ValueError for a `Policy` object, which is no JSON.
        """
        if isinstance(self.policy, Policy):
            raise ValueError(
                "a Policy object cannot be stored as JSON; save it and give the file's path as "
                "policy="
            )
        found = asdict(replace(self, model=os.fspath(self.model)))
        if isinstance(self.policy, os.PathLike):
            found["policy"] = os.fspath(self.policy)
        elif isinstance(self.policy, Mapping):
            found["policy"] = dict(self.policy)
        defaults = Settings("")
        return {
            key: value
            for key, value in found.items()
            if key == "model" or value != getattr(defaults, key)
        }


def vector_policy(model: Model, profile: str | None) -> tuple[str, str | None]:
    """What vectors must have in common to be compared: the policy's hash and the profile.

    The profile is None for the policy's own numbers, whichever way they were asked for.
    """
    if profile == OFF or model.policy is None:
        return OFF, None
    return model.policy_hash, None if profile == DEFAULT else profile


def warn_if_different(
    queries: tuple[str, str | None], documents: tuple[str, str | None], stacklevel: int = 2
) -> bool:
    """Warn when two of `vector_policy` differ; returns whether they do."""
    if queries == documents:
        return False

    def told(pair: tuple[str, str | None]) -> str:
        return pair[0][:12] + (f", profile {pair[1]}" if pair[1] else "")

    warnings.warn(
        f"queries use the pruning policy {told(queries)}, documents {told(documents)}: their "
        "vectors are made differently and should not be compared without a check of the quality",
        PolicyMismatchWarning,
        stacklevel=stacklevel + 1,
    )
    return True
