"""Limits and choices of a server."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields

_UNSENDABLE = re.compile(r"[^!-~]")


@dataclass(frozen=True)
class Settings:
    """Limits and choices of a server.

    Attributes:
        api_key: what clients send as ``Authorization: Bearer KEY``, of visible ASCII. White space
            around it, such as the line break of a secret's file, is cut off. None: no key.
        max_batch_tokens: tokens per call of the encoder. Larger calls make short requests wait
            longer; smaller ones cost throughput.
        max_queue_ms: a request is refused with 429 when more work than this is ahead of it.
        max_concurrent_requests: requests that may be open at once; beyond them 429.
        max_items: texts per request.
        max_tokens: tokens per request, after truncation.
        max_body_bytes: size of a request's body.
        timeout_s: a request that is not answered by then ends with 504.
        profile: what requests get that name none: a profile, or None for the policy's own numbers.
        slo_ms: with it, the profile moves to cheaper ones while the queue would take longer.
        min_profile: the cheapest profile to which it may move; default the cheapest of all.
        playground: whether ``GET /`` serves the playground.
    """

    api_key: str | None = field(default=None, repr=False)
    max_batch_tokens: int = 1024
    max_queue_ms: float = 2000.0
    max_concurrent_requests: int = 512
    max_items: int = 2048
    max_tokens: int = 262_144
    max_body_bytes: int = 2_000_000
    timeout_s: float = 30.0
    profile: str | None = None
    slo_ms: float | None = None
    min_profile: str | None = None
    playground: bool = True

    def __post_init__(self) -> None:
        """ValueError for a limit that is no positive number, a key that no client can send, or a
        floor without an objective."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{item.name} must be a positive number, got {value}")
        if self.api_key is not None:
            object.__setattr__(self, "api_key", _sendable(self.api_key))
        if self.min_profile is not None and self.slo_ms is None:
            raise ValueError(
                f"min_profile {self.min_profile!r} bounds what slo_ms may do, which is not given"
            )


def _sendable(key: str) -> str:
    """The key as a header carries it; messages do not repeat it."""
    key = key.strip()
    if not key:
        raise ValueError("api_key is empty; leave it out to let everybody in")
    if found := _UNSENDABLE.search(key):
        kind = "white space" if found[0].isspace() else "a character that is not visible ASCII"
        raise ValueError(
            f"api_key has {kind} at position {found.start() + 1} of {len(key)}; "
            "a client can send visible ASCII without spaces"
        )
    return key
