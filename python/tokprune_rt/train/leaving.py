"""How tokens leave, which depends on what a model's head reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokprune_rt.policy.preset_parts import Document


@dataclass(frozen=True)
class Leaving:
    """What a policy for one kind of head says beside its numbers.

    Attributes:
        output: the policy's output for a head that reads every token; a token that left then shows
            its last state. None for a head that reads the first token.
        segment: the text of a pair that stays, -1 for none.
    """

    output: str | None = None
    segment: int = -1

    @property
    def restores(self) -> bool:
        """Whether tokens that left are seen by the head."""
        return self.output is not None

    @property
    def action(self) -> str:
        """A step's action."""
        return "restore" if self.restores else "drop"

    def rule(self, protect: Sequence[int]) -> dict[str, Any]:
        """Who never leaves, in the terms of a compiled plan; ``protect`` are token ids."""
        return {
            "first": True,
            "last": False,
            "token_ids": list(protect),
            "segment": self.segment,
        }

    def document(self, policy: Document) -> Document:
        """A policy that drops tokens, as this kind of head needs it."""
        if self.segment >= 0:
            protect = {**policy.get("protect", {}), "segment": self.segment}
            policy = {**policy, "protect": protect}
        if not self.restores:
            return policy
        steps = [{**step, "action": {"kind": self.action}} for step in policy["steps"]]
        return {**policy, "steps": steps, "output": {"kind": self.output}}


class Shown:
    """What a head per token sees while decisions are soft: the states in which a token left, each
    by the share of it that left then.

    Args:
        share: float [B, S], what there is of each token to begin with.
    """

    def __init__(self, share: Tensor) -> None:
        self.share = share
        self._left: Tensor | None = None

    def stays(self, share: Tensor, state: Tensor) -> None:
        """No more than ``share`` [B, S] of each token is left; the rest shows ``state``
        [B, S, d]."""
        part = (self.share - share)[..., None].to(state.dtype) * state
        self._left = part if self._left is None else self._left + part
        self.share = share

    def rows(self, state: Tensor) -> Tensor:
        """What the head sees when ``state`` [B, S, d] leaves the last layer."""
        rest = self.share[..., None].to(state.dtype) * state
        return rest if self._left is None else self._left + rest


FROM_FIRST = Leaving()
_PER_TOKEN = {
    "token-classification": Leaving("tokens_restored"),
    "question-answering": Leaving("span", segment=0),
}


def leaving_of(task: str) -> Leaving:
    """How tokens leave in a model of this task, as the runtime calls it."""
    return _PER_TOKEN.get(task, FROM_FIRST)
