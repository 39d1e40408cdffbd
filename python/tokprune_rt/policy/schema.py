"""The pruning policy as frozen dataclasses, with the meaning of every field.

Instances come from `tokprune_rt.policy.parse_policy` or `load_policy`, which validate; building
one by hand skips validation. Symbols used below: n tokens alive now (protected ones included),
n0 tokens of the input, U the unprotected alive tokens, A[h, q, j] the attention probability of
head h from query row q to token j, and c_j a column sum of A. Higher scores stay; equal scores
are decided for the lower position; survivors keep their order and their position embedding.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .choices import Score, Select
from .storage import FloatArray, digest, write_policy

FORMAT = "token-policy"
VERSION = 1
OFF = "off"
"""The profile without pruning, bit-identical to the dense engine."""
DEFAULT = "default"
"""The profile of the policy's own numbers, as None. Every policy has both; none defines them."""


@dataclass(frozen=True)
class Protect:
    """Tokens that never leave. They take part in attention and vote as any other token.

    A call may protect more tokens with its own mask.

    Attributes:
        first: the first token of every sequence ([CLS], <s>). Needed by outputs and scores that
            read row 0.
        last: the last token of the input sequence ([SEP], </s>).
        token_ids: every occurrence of these ids, for example the separator of pairs.
        segment: every token of this segment, for example 0: the query of a reranker or the
            question of question answering. None protects no segment.
    """

    first: bool = False
    last: bool = False
    token_ids: tuple[int, ...] = ()
    segment: int | None = None


@dataclass(frozen=True)
class Limits:
    """Bounds that hold for every step, per sequence.

    Attributes:
        min_tokens: a step leaves at least this many tokens alive: the best-scored tokens it would
            drop stay. None means 1, or 0 when `dead_first` is "passive".
        max_tokens: a step leaves at most this many alive, unless more are protected: the
            worst-scored unprotected ones leave too. A guard against inputs crafted to stay long.
        skip_below: a sequence shorter than this is not pruned at all.
    """

    min_tokens: int | None = None
    max_tokens: int | None = None
    skip_below: int = 0


@dataclass(frozen=True)
class Step:
    """One pruning step, repeated at several layers.

    Sites:
        embed: after the embeddings (`layers` is [0]).
        pre: before layer l.
        mid: between softmax and value product of layer l. Attention of layer l still sees the
            dropped tokens as keys, but their rows go no further.
        post: after layer l.

    Actions:
        drop: the tokens leave.
        restore: the tokens leave, and the final output has their last full state at their place:
            the input of layer l for `mid`, the state at that boundary for the other sites.
        package: the tokens leave and become one row at the end: their mean weighted by score
            (uniform when the scores sum to 0 or less), taken after residual and LayerNorm for
            `mid`. Its position is the lowest one, its size the number of tokens in it.
        merge: every token that leaves becomes one row with its partner (`Select`).
        pool: every group of neighbours (`Select`) becomes one row.

    A row of `merge` or `pool` stands at the place of its lowest position and has that token's id
    and segment. It is the mean of its rows, each weighted by its size, the number of tokens it
    stands for; of accumulated attention likewise. Its size is the sum. At `mid` the states are
    those after attention, residual and LayerNorm, and all steps of that place run there, each on
    the result of the one before. Protected tokens never merge. These actions cannot be combined
    with the others but drop.

    Attributes:
        layers: where the step runs, increasing.
        site: see above.
        score: id of the score.
        select: which tokens stay.
        action: see above.
        log_size: of merge and pool: in every later layer, attention before the softmax gets
            ln(size) of the key, so that a row attracts what its tokens would. One value for all
            steps of a policy.
    """

    layers: tuple[int, ...]
    site: str
    score: str
    select: Select
    action: str
    log_size: bool = True

    @property
    def groups(self) -> bool:
        """Whether rows of the step stand for groups of tokens (merge, pool)."""
        return self.action in ("merge", "pool")

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        bias = {} if self.log_size else {"log_size": False}
        return {
            "layers": list(self.layers),
            "site": self.site,
            "score": self.score,
            "select": {"kind": self.select.kind, **self.select.to_dict()},
            "action": {"kind": self.action, **bias},
        }


@dataclass(frozen=True)
class Profile:
    """A named override of numbers, chosen per call, so that one policy serves several budgets.

    Attributes:
        theta_scale: multiplies theta, eta and t of every step, after `steps`; floors, the t of
            `gate` and the theta of merging stay.
        steps: per step None or the select fields that replace those of the step; empty means
            that no step is overridden. Where a step has one of two fields (ratio or theta, ratio
            or stride), a profile may replace that one.
        limits: the limits that replace those of the policy, field by field.
    """

    theta_scale: float = 1.0
    steps: tuple[Select | None, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form without defaults."""
        result: dict[str, Any] = {}
        if self.theta_scale != 1.0:
            result["theta_scale"] = self.theta_scale
        if any(step is not None for step in self.steps):
            result["steps"] = [None if step is None else step.to_dict() for step in self.steps]
        if self.limits:
            result["limits"] = dict(self.limits)
        return result


@dataclass(frozen=True)
class Output:
    """What the policy was made for; it must be what the model delivers.

    Left to a model that pools, it is "mean" over "kept", or over "size" when steps merge or pool.

    Attributes:
        kind: "cls" (the row of token 0), "mean" (pooling over rows), "tokens_restored" (a row for
            every input token) or "span" (start and end logits for every input token).
        over: for "mean": "kept" rows alike, "size" (rows weighted by the tokens they stand for)
            or "restored" (every input token's last state). The last mixes states of different
            layers: without training for it, it strays further from the dense mean than "kept".
        explicit: whether the policy says so; otherwise it was derived from the model.
    """

    kind: str
    over: str = "kept"
    explicit: bool = field(default=True, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON form without defaults."""
        return {"kind": self.kind} | ({"over": self.over} if self.over != "kept" else {})


@dataclass(frozen=True, eq=False)
class Policy:
    """A validated pruning policy. Equality and hash ignore how the file was spelled.

    Attributes:
        layers: number of layers of the model it is made for.
        scores: id -> score.
        steps: in the order of the file.
        dead_first: rule of official LTP checkpoints ("passive" in JSON): token 0 may be dropped;
            its row then goes on without attention context, is neither key nor voter, is counted
            nowhere, and stays row 0 of the output.
        profiles: name -> overrides. `off` and `default` always exist and are not listed.
        output: None when the file leaves it to the model.
        tensors: name -> float32 array of `token_policy.safetensors`.
        provenance: free JSON: where the policy comes from and what was measured.
    """

    layers: int
    protect: Protect
    limits: Limits
    scores: Mapping[str, Score]
    steps: tuple[Step, ...]
    name: str | None = None
    dead_first: bool = False
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    output: Output | None = None
    tensors: Mapping[str, FloatArray] = field(default_factory=dict)
    provenance: Any = None

    def resolve(self, profile: str | None) -> tuple[tuple[Select, ...], Limits, float]:
        """Selections, limits and theta scale in force under a profile.

        None and `default` are the plain numbers.

        Raises:
            ValueError: there is no such profile (`off` has no numbers and is not accepted).
        """
        selects = tuple(step.select for step in self.steps)
        if profile in (None, DEFAULT):
            return selects, self.limits, 1.0
        if profile not in self.profiles:
            known = ", ".join([OFF, *self.profiles])
            raise ValueError(f"unknown profile {profile!r}; this policy has: {known}")
        chosen = self.profiles[profile]
        if chosen.steps:
            selects = tuple(s.overridden(o) for s, o in zip(selects, chosen.steps, strict=True))
        limits = dataclasses.replace(self.limits, **chosen.limits)
        return selects, limits, chosen.theta_scale

    def to_dict(self) -> dict[str, Any]:
        """JSON form without defaults; `parse_policy(p.to_dict(), p.tensors) == p`."""
        result: dict[str, Any] = {"format": FORMAT, "version": VERSION, "layers": self.layers}
        if self.name is not None:
            result["name"] = self.name
        for key, part in (("protect", self.protect), ("limits", self.limits)):
            fields = _without_defaults(part)
            if fields:
                result[key] = fields
        if self.dead_first:
            result["dead_first"] = "passive"
        result["scores"] = {name: score.to_dict() for name, score in self.scores.items()}
        result["steps"] = [step.to_dict() for step in self.steps]
        if self.profiles:
            result["profiles"] = {name: p.to_dict() for name, p in self.profiles.items()}
        if self.output is not None and self.output.explicit:
            result["output"] = self.output.to_dict()
        if self.provenance is not None:
            result["provenance"] = self.provenance
        return result

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `token_policy.json`, and `token_policy.safetensors` if there are tensors.

        Each file is replaced atomically; a tensor file that is no longer needed is removed.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        write_policy(Path(folder), self.to_dict(), self.tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Policy):
            return NotImplemented
        return (
            self.to_dict() == other.to_dict()
            and self.tensors.keys() == other.tensors.keys()
            and all(np.array_equal(t, other.tensors[k]) for k, t in self.tensors.items())
        )

    def __hash__(self) -> int:
        return hash(policy_hash(self))


def policy_hash(policy: Policy) -> str:
    """SHA-256 (64 hex digits) over canonical JSON without provenance, and the tensors.

    It does not depend on key order, spelled-out defaults or number formatting, nor on whether the
    output was derived from a model. Embeddings are comparable when model and hash (and profile)
    are the same.
    """
    document = policy.to_dict()
    document.pop("provenance", None)
    return digest(document, policy.tensors)


def _without_defaults(part: Protect | Limits) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        if value != item.default:
            result[item.name] = list(value) if isinstance(value, tuple) else value
    return result
