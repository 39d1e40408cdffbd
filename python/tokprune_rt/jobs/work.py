"""The hidden folder of an unfinished job: what is done, and how to go on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokprune_rt.files import atomic_file, only_process

Job = Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """How far a job has come: finished rows, and the bytes of the data file that hold them."""

    rows: int
    size: int


class Work:
    """Folder beside ``output`` for one job, which one process at a time may work on.

    ``data`` grows by a chunk at a time. Its length after the last finished chunk is in
    ``state.json``; what a killed process wrote after that is cut off.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f".{output.name}.work")
        self.data = self.folder / "data"
        self._state = self.folder / "state.json"
        self._removed = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out. A folder in which nothing was begun is removed at the end.

        Raises BlockingIOError when another process works on the same output.
        """
        with only_process(self.folder, self.output):
            try:
                yield
            finally:
                # Once removed, a folder of this name is another process's.
                if not self._removed and not self._state.exists():
                    self.remove()

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._removed = True

    def read(self, job: Job) -> Done | None:
        """How far the job has come; None when it has not begun.

        Raises ValueError when what has begun is another job, or cannot be continued.
        """
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            done = Done(state["done"]["rows"], state["done"]["size"])
            other = differences(state["job"], job)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self._state} is damaged ({error}); delete {self.folder} to start over"
            ) from error
        if other:
            raise ValueError(
                f"{self.folder} holds an unfinished job that differs: {other}; finish that one "
                "with its own options, or delete the folder to start over"
            )
        size = self.data.stat().st_size if self.data.exists() else 0
        if size < done.size:
            raise ValueError(
                f"{self.data} has {size} bytes where {done.size} were written; delete "
                f"{self.folder} to start over"
            )
        return done

    def write(self, job: Job, done: Done) -> None:
        """Note how far the job has come."""
        state = {"job": dict(job), "done": {"rows": done.rows, "size": done.size}}
        with atomic_file(self._state) as file:
            file.write(to_json(state))

    def publish(self, result: Path, sidecar: Path, facts: Mapping[str, Any]) -> None:
        """Give ``result`` the name of the output, ``facts`` beside it, and delete the folder."""
        beside = self.folder / "facts.json"
        with open(beside, "wb") as file:
            file.write(to_json(facts))
            file.flush()
            os.fsync(file.fileno())
        # The output is last: where it is, everything is.
        os.replace(beside, sidecar)
        os.replace(result, self.output)
        self.remove()


def to_json(value: Any) -> bytes:
    """A readable JSON file."""
    return json.dumps(value, indent=2).encode() + b"\n"


def differences(before: Job, now: Job) -> str:
    """Where two jobs differ, in words; empty when they are the same."""
    return ", ".join(
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    )


def finished(output: Path, sidecar: Path, job: Job) -> int | None:
    """The rows of ``output`` when it is there and this job made it, None when it is not there.

    Raises FileExistsError when something else made it, or the sidecar's name is taken.
    """
    try:
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
        known = isinstance(facts, dict) and {"model_fingerprint", "rows"} <= facts.keys()
    except FileNotFoundError:
        facts, known = {}, None
    except (ValueError, OSError):
        facts, known = {}, False
    if known is False:
        raise FileExistsError(
            f"{sidecar} exists and does not describe vectors; give the output another name"
        )
    if not output.exists():
        return None
    if not known:
        raise FileExistsError(f"{output} exists; give another name or delete it")
    other = differences({key: facts.get(key) for key in job}, job)
    if other:
        raise FileExistsError(
            f"{output} exists and was made by another job: {other}; give another name or delete it"
        )
    return int(facts["rows"])
