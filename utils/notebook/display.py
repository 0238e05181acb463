"""What cells end in: views of a run folder that draw themselves. They read the folder and nothing else.

Where no path is given it is the run active last, so that a cell needs nothing from the cells above it.
"""

import html
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from utils.jobs.describe import plain
from utils.notebook.live_chart import loss_chart
from utils.runs.folder import Row, RunFolder, latest_run, list_runs, open_run
from utils.runs.overview import overview
from utils.runs.progress import outcome, progress_line
from utils.runtime.table import Table

PROSE = "white-space:pre-wrap;max-width:84ch;line-height:1.45;font-size:13px;margin:4px 0"


@dataclass(frozen=True)
class Text:
    """Text that a model wrote, shown as it is; what was given to it is bold."""

    text: str
    prompt: str = ""

    def __repr__(self) -> str:
        return self.prompt + self.text

    def _repr_html_(self) -> str:
        prompt = f"<b>{html.escape(self.prompt.lstrip())}</b>"
        return f'<div style="{PROSE}">{prompt}{html.escape(self.text)}</div>'


@dataclass(frozen=True)
class Shown:
    """Something on its way: words for a terminal, HTML for a notebook (the words, if there is none)."""

    words: str
    page: str | None = None

    def __repr__(self) -> str:
        return self.words

    def _repr_html_(self) -> str:
        return html.escape(self.words) if self.page is None else self.page


@dataclass(frozen=True)
class RunView:
    """One run, as it stands on disk now: a sentence and the loss chart."""

    run: RunFolder

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.run.path

    def line(self) -> str:
        """How the run stands, in a sentence."""
        state, status = self.run.state(), self.run.status()
        return progress_line(state) if status == "running" else outcome(state, status)

    def chart(self) -> str:
        """The loss chart as SVG."""
        state = self.run.state()
        return loss_chart(self.run.metrics(), state.get("entropy_floor"), state.get("total_steps") or 0)

    def __repr__(self) -> str:
        return f"{self.line()}\nrun: {self.path}"

    def _repr_html_(self) -> str:
        words = f"<b>{html.escape(self.run.name)}</b>: {html.escape(self.line())}"
        alerts = "".join(
            f'<div style="color:#dc2626">step {event.get("step", 0):d}: {html.escape(event.get("text", ""))}</div>'
            for event in self.run.events("alert")[-3:]
        )
        return f'<div style="font-size:13px;margin:4px 0">{words}</div>{alerts}{self.chart()}'


def show_run(path: str | Path | None = None) -> RunView:
    """The run itself: works while it trains, after it, and after a restart of the kernel."""
    return RunView(_open(path))


def show_metrics(path: str | Path | None = None) -> Table:
    """Every evaluation of a run: loss in nats per token, perplexity, accuracy, bits per byte."""
    run = _open(path)
    asked = {"masked": "hidden tokens found", "seq2seq": "next-token accuracy"}  # and of a causal model
    accuracy = asked.get(str(run.read_json("meta").get("task")), "next-token accuracy")
    rows = [
        (
            str(row["step"]),
            _number(row, "val/loss", ".4f"),
            _number(row, "val/perplexity", ".2f"),
            _number(row, "val/accuracy", ".1%"),
            _number(row, "val/bits_per_byte", ".3f"),
        )
        for row in run.metrics()
        if row["kind"] == "val"
    ]
    header = ("step", "val loss", "perplexity", accuracy, "bits per byte")
    if not any(row[-1] for row in rows):  # only a causal loss is a length of code
        rows, header = [row[:-1] for row in rows], header[:-1]
    return Table(rows, header=header)


def show_samples(path: str | Path | None = None) -> Table:
    """What the model wrote while it was learning, by step."""
    by_step = {event.get("step", 0): plain(event.get("text", "").strip()) for event in _open(path).events("sample")}
    return Table([(str(step), text) for step, text in sorted(by_step.items())], header=("step", "the model's own text"))


def show_files(path: str | Path | None = None) -> Table:
    """What the run left on disk."""
    run = _open(path)
    files = [(file.relative_to(run.path.parent), file.stat().st_size) for file in run.path.rglob("*") if file.is_file()]
    rows = [(plain(str(name)), f"{size:,}") for name, size in sorted(files) if name.name != "run.lock"]
    return Table(rows, header=("file", "bytes"))


def show_storage(root: str | Path = "runs") -> Table:
    """Where runs are kept, how much room is left there, and the runs there are, the most recently active first."""
    folder = Path(root).resolve()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    title = f"{folder}: {free / 1e9:,.0f} GB free"
    runs = list_runs(root)
    return replace(overview(runs), title=title) if runs else Table([], title=title, note="No runs yet.")


def _number(row: Row, key: str, form: str) -> str:
    value = row.get(key)
    return "" if value is None else format(value, form)


def _open(path: str | Path | None) -> RunFolder:
    return latest_run() if path is None else open_run(path)
