"""What goes to the terminal: results to standard output, everything else to standard error."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_LOG_SECONDS = 60.0
# C0 and C1 controls other than tab and newline: a text must not steer the terminal.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """``text`` with control characters replaced by U+FFFD."""
    return _CONTROLS.sub("\ufffd", text)


def out() -> Console:
    """Console for results."""
    return Console(highlight=False)


def err() -> Console:
    """Console for messages and progress."""
    return Console(stderr=True, highlight=False)


def _one_line(label: str, style: str, message: str) -> None:
    line = Text.assemble((f"{label}: ", style), " ".join(printable(message).split()))
    err().print(line, soft_wrap=True)


def error_line(message: str) -> None:
    """One line on standard error that says what went wrong."""
    _one_line("error", "bold red", message)


def note_line(message: str) -> None:
    """One line on standard error that says something worth knowing."""
    _one_line("note", "bold yellow", message)


def print_list(console: Console, lines: Iterable[str]) -> None:
    """Prints lines as a dim list; long ones are wrapped and indented."""
    for line in lines:
        item = Table.grid(padding=(0, 1))
        item.add_row("-", Text(printable(line)))
        console.print(Padding(item, (0, 0, 0, 1)), style="dim")


@contextmanager
def trimmed(console: Console) -> Iterator[Console]:
    """The console; in a pipe, without the blanks with which tables fill up their lines."""
    if console.is_terminal:
        yield console
        return
    with console.capture() as capture:
        yield console
    for line in capture.get().splitlines():
        console.file.write(line.rstrip() + "\n")


def unicode_ok(console: Console) -> bool:
    """Whether the console's encoding has block characters."""
    return console.encoding.lower().startswith("utf")


class Advance(Protocol):
    """Counts finished work."""

    def __call__(self, count: int) -> None: ...


class Stages(Protocol):
    """Says how many stages are finished, how many there are, and which one is next."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


class Counter(Protocol):
    """Says how much is finished, and how much there is."""

    def __call__(self, done: int, total: int) -> None: ...


class _Rate(ProgressColumn):
    """Finished work a second, over the last minutes."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s")


def _progress(*columns: ProgressColumn, width: int = 40) -> Progress:
    """A progress bar on standard error; draws nothing unless that is a terminal."""
    # FORCE_COLOR makes a console of a pipe, but a bar in a file helps nobody.
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(width),
        MofNCompleteColumn(),
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err(),
        disable=not sys.stderr.isatty(),
        # Steps of a long job may be minutes apart.
        speed_estimate_period=600,
    )


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Advance]:
    """Yields a function that counts finished work."""
    with _progress() as progress:
        task = progress.add_task(label, total=total)

        def advance(count: int) -> None:
            progress.advance(task, count)

        yield advance


@contextmanager
def stages_bar() -> Iterator[Stages]:
    """Yields a function that is told of every stage."""
    with _progress() as progress:
        task = progress.add_task("", total=None)

        def stage(done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, description=what)

        yield stage


@contextmanager
def job_bar(label: str) -> Iterator[Counter]:
    """Yields a function that is told of a long job's state: a bar, or a line a minute in a log."""
    if not sys.stderr.isatty():
        yield _log(label)
        return
    with _progress(_Rate(), width=20) as progress:
        task = progress.add_task(label, total=None)

        def count(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield count


def _log(label: str) -> Counter:
    begun: tuple[float, int] | None = None
    shown = 0.0

    def count(done: int, total: int) -> None:
        nonlocal begun, shown
        now = time.monotonic()
        if begun is None:
            begun, shown = (now, done), now
        elif now - shown >= _LOG_SECONDS:
            shown = now
            rate = (done - begun[1]) / (now - begun[0])
            left = timedelta(seconds=round((total - done) / rate))
            line = f"{label}: {done:,} of {total:,}, {rate:,.0f}/s, {left} left"
            err().print(line, markup=False, soft_wrap=True)

    return count
