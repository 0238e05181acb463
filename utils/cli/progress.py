"""A run's progress in a terminal: a bar where there is one, plain lines in a pipe or a log."""

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from utils.jobs.describe import plain
from utils.jobs.launch import Job
from utils.runs.folder import Row, RunFolder
from utils.runs.progress import NEWS, event_line, outcome, percent, progress_line
from utils.runtime.table import count, duration

PLAIN_EVERY = 5.0  # seconds between plain lines, when nothing was evaluated in between


def follow(job: Job) -> int:
    """Show a run until it ends, say how it ended; gives back the exit code."""
    if job.child is None and job.run.status() == "completed":
        print_ending(job.run)
        return 0
    view: View = BarView() if sys.stdout.isatty() else PlainView()
    news = News(job.run)
    try:
        view.open(job.run)
        for run in job.watch():
            for line in news.lines():
                view.tell(line)
            view.show(run.state())
    finally:
        view.close()  # or the terminal keeps its cursor hidden
    code, words = job.result()
    if words:
        print(f"error: {words}", file=sys.stderr)
        if code == 1:
            print(f"log: {job.run.log}", file=sys.stderr)
        return code
    print_ending(job.run)
    if code:
        print(f"`tbt resume {job.run.path}` goes on from the last checkpoint.", file=sys.stderr)
    return code


def print_ending(run: RunFolder) -> None:
    """How a run ended, and where it is."""
    print(outcome(run.state(), run.status()))
    print(f"run: {run.path}")


class News:
    """What happens to a run from now on that somebody should know of: what went wrong, and what was chosen for it."""

    def __init__(self, run: RunFolder) -> None:
        self._file, self._run, self._size = run.path / "events.jsonl", run, -1
        self._told = len(self._events())

    def lines(self) -> list[str]:
        """What is new since the last call, one line for each, without what could move a terminal's cursor."""
        events = self._events()
        new, self._told = events[self._told :], max(self._told, len(events))
        return [plain(event_line(event)) for event in new]

    def _events(self) -> list[Row]:
        try:
            size = self._file.stat().st_size
            if size == self._size:
                return []
            self._size = size
            return self._run.events(*NEWS)
        except (OSError, ValueError):  # not there yet; or no file that can be read
            return []


class View(Protocol):
    """Something that shows a run's state."""

    def open(self, run: RunFolder) -> None:
        """Called once, first."""

    def show(self, state: Row) -> None:
        """Called often, with the newest state."""

    def tell(self, line: str) -> None:
        """Called once with each line of news."""

    def close(self) -> None:
        """Called once, last."""


class PlainView:
    """One line for every evaluation, and one every few seconds."""

    def __init__(self) -> None:
        self._last: Row = {}
        self._time = 0.0

    def open(self, run: RunFolder) -> None:
        """Name the run."""
        print(f"training {run.path}", flush=True)

    def show(self, state: Row) -> None:
        """Print a line if there is news."""
        evaluated = state.get("val_loss") != self._last.get("val_loss")
        moved = state.get("step") != self._last.get("step")
        if moved and (evaluated or time.monotonic() - self._time >= PLAIN_EVERY):
            print(progress_line(state), flush=True)
            self._last, self._time = state, time.monotonic()

    def tell(self, line: str) -> None:
        """Print it."""
        print(line, flush=True)

    def close(self) -> None:
        """Nothing is open."""


class BarView:
    """A bar that stays on its line: step, loss, validation loss, tokens per second, share of the peak, time left."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=Console(),
        )

    def open(self, run: RunFolder) -> None:
        """Draw an empty bar."""
        self._task = self._progress.add_task(run.name, total=None, numbers="starting ...")
        self._progress.start()

    def show(self, state: Row) -> None:
        """Move the bar."""
        if "step" not in state:
            return
        named = (("loss", "train_loss", ".4f"), ("val", "val_loss", ".4f"))
        numbers = [f"{name} {state[key]:{form}}" for name, key, form in named if state.get(key) is not None]
        if state.get("tokens_per_second"):
            numbers.append(f"{count(state['tokens_per_second'])} tok/s")
        if state.get("mfu"):
            numbers.append(f"mfu {percent(state['mfu'])}")
        if state.get("eta_seconds"):
            numbers.append(f"{duration(state['eta_seconds'])} left")
        self._progress.update(
            self._task, total=state.get("total_steps"), completed=state["step"], numbers="  ".join(numbers)
        )

    def tell(self, line: str) -> None:
        """Print it above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last bar on the screen."""
        self._progress.stop()
