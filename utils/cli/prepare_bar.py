"""How far the preparing of data is: a bar in a terminal, plain lines in a pipe or a log. Knows only what it is told."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from utils.runs.progress import data_line
from utils.runtime.table import count

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_EVERY = 5.0  # seconds between two lines about the same thing
PATIENCE = 2.0  # seconds that nobody minds waiting for without a word


class View(Protocol):
    """Takes news: what is being done, how much of it is done, of how much (0 = unknown)."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Called often."""


class Timed:
    """A view, and how long there was something to show."""

    def __init__(self, view: View) -> None:
        self._view, self._first = view, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Pass it on."""
        self._first = self._first or time.monotonic()
        self._view(what, done, total)

    @property
    def seconds(self) -> float:
        """Since the first news; 0 if there was none."""
        return time.monotonic() - self._first if self._first else 0.0


@contextmanager
def prepare_bar() -> Iterator[Timed]:
    """Show progress on stderr while the block runs."""
    if not sys.stderr.isatty():
        yield Timed(PlainLines())
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    words, numbers = TextColumn("{task.description}"), TextColumn("{task.fields[numbers]}")
    columns = (words, BarColumn(), TaskProgressColumn(), numbers, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Timed(BarLines(progress))


class BarLines:
    """One bar for each thing that is done, below each other."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._tasks: dict[str, tuple[TaskID, float]] = {}  # its bar, and when it began

    def __call__(self, what: str, done: int, total: int) -> None:
        """Move the bar of `what`, or begin one."""
        if what not in self._tasks:
            for earlier, _ in self._tasks.values():  # is over, of however much it was
                self._progress.update(earlier, completed=1, total=1)
            self._tasks[what] = self._progress.add_task(what, total=None, numbers=""), time.monotonic()
        task, began = self._tasks[what]
        seconds = time.monotonic() - began
        speed = f", {count(done / seconds)}/s" if seconds > 1 else ""
        self._progress.update(task, completed=done, total=total or None, numbers=f"{count(done)}{speed}")


class PlainLines:
    """A line when something else begins, and one every few seconds."""

    def __init__(self) -> None:
        self._what, self._time, self._begin = "", 0.0, time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print a line if there is news, and it takes its time."""
        now = time.monotonic()
        if now - self._begin < PATIENCE or (what == self._what and now - self._time < PLAIN_EVERY):
            return
        print(data_line(what, done, total), file=sys.stderr, flush=True)
        self._what, self._time = what, now
