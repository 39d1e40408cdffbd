"""What a calibration has measured so far, kept in a file so that it can go on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokprune_rt.files import atomic_file

from .families import Shares
from .search import Point

NAME = "calibration.json"

# Seconds of work that a kill may cost; a write waits for the disk.
_EVERY = 5.0


class State:
    """Measurements by name of the search, written now and then.

    Args:
        folder: where the file lies.
        job: everything the measurements depend on, as JSON; other measurements are not continued.

    Raises:
        ValueError: the file is damaged or another job's.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self._path = folder / NAME
        self._job = dict(job)
        self._points: dict[str, dict[Shares, Point]] = {}
        self.speeds: dict[int, float] = {}
        self.found = 0
        self._written = -_EVERY
        if self._path.exists():
            self._read()

    def get(self, name: str, shares: Shares) -> Point | None:
        """A measurement of the search ``name``."""
        return self._points.get(name, {}).get(shares)

    def put(self, name: str, point: Point) -> None:
        """Keep a measurement."""
        self._points.setdefault(name, {})[point.shares] = point
        if time.monotonic() - self._written > _EVERY:
            self.write()

    def put_speeds(self, speeds: Mapping[int, float]) -> None:
        """Keep the speed-ups by length."""
        self.speeds = dict(speeds)
        self.write()

    def write(self) -> None:
        """Put everything into the file."""
        points = {
            name: [[list(p.shares), p.macs, p.loss] for p in found.values()]
            for name, found in self._points.items()
        }
        with atomic_file(self._path) as file:
            content = {"job": self._job, "points": points, "speeds": self.speeds}
            file.write(json.dumps(content).encode())
        self._written = time.monotonic()

    def _read(self) -> None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            before = content["job"]
            self.speeds = {int(length): speed for length, speed in content["speeds"].items()}
            for name, points in content["points"].items():
                for shares, macs, loss in points:
                    point = Point(tuple(shares), float(macs), float(loss))
                    self._points.setdefault(name, {})[point.shares] = point
                    self.found += 1
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self._path} is damaged ({error}); delete it to start over"
            ) from error
        for key in {**before, **self._job}:
            if before.get(key) != self._job.get(key):
                raise ValueError(
                    f"{self._path} holds another calibration: {key} was {before.get(key)!r}, is "
                    f"{self._job.get(key)!r}; give another folder or delete that file"
                )
