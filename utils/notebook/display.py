"""What cells end in: views of a run folder that draw themselves. They read the folder and nothing else.

Where no path is given it is the run active last, so that a cell needs nothing from the cells above it.
"""

import html
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from utils.jobs.describe import plain
from utils.notebook.live_chart import loss_chart, split_bar
from utils.runs.folder import Row, RunFolder, latest_run, list_runs, open_run
from utils.runs.overview import overview
from utils.runs.progress import ALERTS, alerts, outcome, percent, progress_line, split
from utils.runtime.table import Table, count, duration

SPEEDS = ("tokens_per_second", "mfu", "eta_seconds")  # shown large, below the line
MOST_NOTES = 3  # of what a run chose by itself, the last ones
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
    """One run, as it stands on disk now: a sentence, how fast it is and where its time goes, and the loss chart."""

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
        state, status, numbers = self.run.state(), self.run.status(), self.numbers()
        slow = {key: value for key, value in state.items() if key not in SPEEDS}
        line = progress_line(slow) if status == "running" else outcome(state, status)
        words = f"<b>{html.escape(self.run.name)}</b>: {html.escape(line)}"
        notes = [str(event.get("text", "")) for event in self.run.events("note")[-MOST_NOTES:]]
        told = "".join(f'<div style="opacity:.65;font-size:13px">{html.escape(plain(text))}</div>' for text in notes)
        told += "".join(
            f'<div style="color:#dc2626;font-size:13px">{html.escape(text)}</div>'
            for text in alerts(self.run.events(*ALERTS))
        )
        tiles = "".join(
            f'<div><div style="opacity:.65;font-size:11px">{name}</div>'
            f'<div style="font-size:17px;font-weight:600;line-height:1.3">{value}</div></div>'
            for name, value in numbers.items()
        )
        return (
            f'<div style="font-size:13px;margin:4px 0;white-space:pre-wrap">{words}</div>{told}'
            f'<div style="display:flex;flex-wrap:wrap;gap:4px 32px;margin:8px 0">{tiles}</div>'
            f"{split_bar(split(state))}{self.chart()}"
        )

    def numbers(self) -> dict[str, str]:
        """How fast the run is, or was, by what it is called; only what is known."""
        state, found = self.run.state(), {}
        if state.get("tokens_per_second"):
            found["tokens per second"] = count(state["tokens_per_second"])
        if state.get("mfu"):
            found["of the peak (MFU)"] = percent(state["mfu"])
        if state.get("eta_seconds") and self.run.status() == "running":
            found["time left"] = duration(state["eta_seconds"])
        if state.get("peak_memory"):
            size = state["peak_memory"]
            found["peak memory"] = f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
        return found


def show_run(path: str | Path | None = None) -> RunView:
    """The run itself: works while it trains, after it, and after a restart of the kernel."""
    return RunView(_open(path))


def show_metrics(path: str | Path | None = None) -> Table:
    """Every evaluation of a run: loss in nats per token, perplexity, accuracy, and what else was measured."""
    run = _open(path)
    task = str(run.read_json("meta").get("task"))
    asked = {"masked": "hidden tokens found", "classification": "right class"}  # the others guess the next token
    columns = {
        "val loss": ("val/loss", ".4f"),
        "pseudo-perplexity" if task == "masked" else "perplexity": ("val/perplexity", ".2f"),
        asked.get(task, "next-token accuracy"): ("val/accuracy", ".1%"),
        "in the first 5": ("val/top5", ".1%"),
        "macro F1": ("val/macro_f1", ".3f"),
        "bits per byte": ("val/bits_per_byte", ".3f"),  # only a causal loss is a length of code
        "BLEU": ("val/bleu", ".1f"),
        "chrF": ("val/chrf", ".1f"),
    }
    found = [row for row in run.metrics() if row["kind"] == "val"]
    cells = {name: [_number(row, key, form) for row in found] for name, (key, form) in columns.items()}
    kept = {"step": [str(row["step"]) for row in found]}
    kept |= {name: cell for name, cell in cells.items() if any(cell) or columns[name][0] == "val/loss"}
    return Table(list(zip(*kept.values(), strict=True)), header=tuple(kept))


def show_samples(path: str | Path | None = None) -> Table:
    """What the model wrote while it was learning, by step: texts, and answers beside what was wanted."""
    run = _open(path)
    by_step = {event.get("step", 0): plain(event.get("text", "").strip()) for event in run.events("sample")}
    texts = list(by_step.items())
    answers = {(event.get("step", 0), str(event.get("prompt", ""))): event for event in run.events("answer")}
    texts += [
        (step, plain(f"{prompt}\n-> {event.get('text', '')}\nwanted: {event.get('reference', '')}"))
        for (step, prompt), event in answers.items()
    ]
    rows = [(str(step), text) for step, text in sorted(texts, key=lambda row: row[0])]
    return Table(rows, header=("step", "the model's own text"))


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
