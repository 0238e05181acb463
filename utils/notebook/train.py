"""`train(config)` for a notebook cell: the worker trains in a process of its own, the cell draws it live."""

import signal
import time

from IPython.display import display

from utils.config.schema import RunConfig
from utils.jobs.launch import Job, launch
from utils.notebook.display import RunView, Shown, Text
from utils.runs.progress import data_line

REDRAW = 1.0  # seconds between two pictures, at least
SHARE = 20  # times as long as drawing one took: the cores are for training


def train(config: RunConfig) -> RunView:
    """Train, or go on where this very run was interrupted, and show it; interrupting the cell saves first.

    The worker outlives this kernel: after a restart, run the cell again and it watches on. Raises ValueError
    (the request is wrong) or RuntimeError (the run failed) with the reason.
    """
    data = DataLine(display(Shown("starting ..."), display_id=True) or Nowhere())
    try:
        job = launch(config, own_session=True, progress=data)
    finally:
        data.clear()
    view = RunView(job.run)
    if job.notes:
        display(Text("\n".join(job.notes)))
    handle = display(Shown("starting ...", view._repr_html_()), display_id=True) or Nowhere()
    try:
        _follow(job, handle, view)
    except KeyboardInterrupt:
        job.send(signal.SIGINT)
        _follow(job, handle, view)
        raise Interrupted(view.line()) from None
    code, words = job.result()
    handle.update(Shown("", ""))  # what the cell returns draws the same again
    if words:
        raise (ValueError if code == 2 else RuntimeError)(words)
    if code:
        raise Interrupted(view.line())
    return view


class Interrupted(KeyboardInterrupt):
    """Stops Run All after training was interrupted and saved; shown as one line, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"{self}. Run this cell again to go on; the cells below work with what was saved."]


class Nowhere:
    """The display of a plain Python process, where nothing shown can be changed."""

    def update(self, shown: object) -> None:
        """Show nothing."""


class DataLine:
    """How far the preparing of the text is, on one line that changes."""

    def __init__(self, handle: object) -> None:
        self._handle, self._what, self._time = handle, "", 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show it if something else is done than before, or if the line is a while old."""
        if what != self._what or time.monotonic() - self._time >= REDRAW:
            self._show(data_line(what, done, total))
            self._what, self._time = what, time.monotonic()

    def clear(self) -> None:
        """Leave nothing behind."""
        self._show("")

    def _show(self, words: str) -> None:
        self._handle.update(Shown(words))  # type: ignore[attr-defined]


def _follow(job: Job, handle: object, view: RunView) -> None:
    shown, next_time = None, 0.0
    for run in job.watch():
        step, begin = run.state().get("step"), time.monotonic()
        if job.alive() and step != shown and begin >= next_time:
            handle.update(Shown(view.line(), view._repr_html_()))  # type: ignore[attr-defined]
            shown, end = step, time.monotonic()
            next_time = end + max(REDRAW, SHARE * (end - begin))  # long runs take longer to draw
