"""Who watches a run in a terminal hears of what goes wrong with it, once."""

import io
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from utils.cli.progress import BarView, News, follow
from utils.jobs.launch import Job
from utils.runs.folder import RunFolder
from utils.runs.lock import RunLock
from utils.runs.recorder import Recorder
from utils.tests.tiny import tiny_config


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with a past: what was told when it happened is not told again."""
    run = RunFolder(tmp_path / "run")
    run.create(tiny_config(run.path))
    recorder = Recorder(run)
    recorder.event("skipped", step=2, text="long ago")
    recorder.close()
    return run


def test_each_thing_once_and_in_order(run: RunFolder):
    news, recorder = News(run), Recorder(run)
    assert news.lines() == []
    recorder.event("note", step=0, text="train.batch_size=auto is 8")
    recorder.event("saved", step=4, best=True)
    recorder.event("out_of_memory", step=5, text="memory ran out: 4 at once from now on", rows=4)
    assert news.lines() == ["step 0: train.batch_size=auto is 8", "step 5: memory ran out: 4 at once from now on"]
    assert news.lines() == []
    recorder.event("rolled_back", step=9, to=4, text="the loss rose\nrun: /elsewhere\x1b[2J")
    assert news.lines() == ["step 9: the loss rose run: /elsewhere?[2J"]  # one line, and none of the terminal's own
    recorder.close()


def test_a_run_whose_events_cannot_be_read_is_shown_without(run: RunFolder):
    news = News(run)
    (run.path / "events.jsonl").unlink()
    (run.path / "events.jsonl").symlink_to(run.path / "config.yaml")
    assert news.lines() == []


def test_following_a_run_prints_them(run: RunFolder, capsys):
    def work() -> None:
        recorder = Recorder(run)
        for step in (1, 2):
            recorder.state(urgent=True, status="running", step=step, total_steps=2, val_loss=float(step))
            recorder.event("skipped", step=step, text="the step was left out")
            time.sleep(0.3)
        recorder.state(urgent=True, status="completed")
        recorder.close()
        lock.release()

    lock = RunLock(run.path)
    assert lock.acquire()
    worker = threading.Timer(0.3, work)  # not before somebody looks
    worker.start()
    assert follow(Job(run)) == 0
    worker.join()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "left out" in line] == [f"step {n}: the step was left out" for n in (1, 2)]
    assert "long ago" not in "".join(lines)
    assert lines[-1] == f"run: {run.path}"


def test_above_a_bar_whatever_the_text_looks_like(run: RunFolder):
    view, out = BarView(), io.StringIO()
    view._progress.live.console = Console(file=out, force_terminal=True, width=80)
    view.open(run)
    view.tell("step 3: [red]at 'blocks.0'[/nonsense] " + "x" * 90)
    view.show({"step": 3, "total_steps": 9, "train_loss": 1.0})
    view.close()
    assert "step 3: [red]at 'blocks.0'[/nonsense] " + "x" * 90 in out.getvalue()
