"""What a training stage says while it runs."""

from __future__ import annotations

import pytest

from tokprune_rt.train import state
from tokprune_rt.train.state import Progress, Telling


def test_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line when half a minute has passed, with the time that the rest takes at this speed."""
    clock = [100.0]
    monkeypatch.setattr(state.time, "monotonic", lambda: clock[0])
    lines: list[str] = []
    telling = Telling(lines.append, "ltp-soft", 3, 300, taken=10)
    for step in range(1, 11):
        clock[0] += 6.0
        telling.step(Progress(epoch=1, step=step, taken=10 + step, losses=[0.5]), 100)
    telling.step(Progress(epoch=2, step=99, taken=299, losses=[0.5]), 100)
    clock[0] += 60.0
    telling.step(Progress(epoch=2, step=99, taken=299, losses=[0.5]), 100)
    assert "about 1 min left" in lines.pop()
    assert lines == [
        f"ltp-soft, epoch 2 of 3: step {step} of 100, loss 0.5000, about {left} min left in this "
        "stage"
        for step, left in ((5, 28), (10, 28))
    ]
