"""What a calibration is asked for, and the texts it draws."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

from tokprune_rt.tokenizer import TextOrPair

_MIN_TEXTS = 30


@dataclass(frozen=True)
class Settings:
    """What is asked for; of the first three one at most, none means ``min_quality`` 0.98.

    Attributes:
        target_speedup: times as fast as dense, batches of 32, measured on the held-out texts.
        min_quality: least `Quality.value` on the held-out texts.
        latency_ms: most milliseconds for one text in a call of its own, mean over held-out texts.
        sample: texts to draw; a third is searched with, the rest is held out.
        budget: minutes after which the search ends with what it has found; None: no limit.
        seed: of the draw.
    """

    target_speedup: float | None = None
    min_quality: float | None = None
    latency_ms: float | None = None
    sample: int = 300
    budget: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        asked = {
            "target_speedup": (self.target_speedup, 1.0, math.inf),
            "min_quality": (self.min_quality, 0.0, 1.0),
            "latency_ms": (self.latency_ms, 0.0, math.inf),
        }
        given = [name for name, (value, _, _) in asked.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"give only one of {' and '.join(given)}")
        for name, (value, low, high) in asked.items():
            if value is not None and not low < value < high:
                raise ValueError(f"{name}: found {value}; allowed: above {low:g}, below {high:g}")
        if self.sample < _MIN_TEXTS:
            raise ValueError(f"sample: found {self.sample}; allowed: {_MIN_TEXTS} or more")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"budget: found {self.budget}; allowed: above 0 minutes")


def draw(texts: Iterable[TextOrPair], count: int, seed: int) -> list[TextOrPair]:
    """``count`` texts or pairs at random, in random order, with no more than those in memory.

    Blank ones are left out. Raises ValueError for fewer than 30.
    """
    source = random.Random(seed)
    kept: list[TextOrPair] = []
    seen = 0
    for text in texts:
        if not "".join(text).strip():
            continue
        seen += 1
        if len(kept) < count:
            kept.append(text)
        elif (place := source.randrange(seen)) < count:
            kept[place] = text
    if len(kept) < _MIN_TEXTS:
        raise ValueError(f"found {len(kept)} texts; a calibration needs {_MIN_TEXTS} or more")
    source.shuffle(kept)
    return kept
