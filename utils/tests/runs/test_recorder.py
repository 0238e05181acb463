"""The recorder: rows at once, state when somebody waits or half a second has gone, attempts counted."""

import json
import os
import time

import pytest

from utils.config.load import load_config
from utils.runs.folder import RunFolder
from utils.runs.recorder import STATE_EVERY, Recorder
from utils.runtime.process import is_same


@pytest.fixture
def run(tmp_path):
    """A run that was just made."""
    made = RunFolder(tmp_path / "mine")
    made.create(load_config("debug"))
    return made


def test_rows_carry_step_kind_and_attempt(run):
    recorder = Recorder(run)
    recorder.train(2, loss=1.5, lr=0.1)
    recorder.val(2, loss=float("nan"))
    recorder.event("saved", step=2)
    assert run.metrics() == [
        {"step": 2, "kind": "train", "loss": 1.5, "lr": 0.1, "attempt": 1},
        {"step": 2, "kind": "val", "loss": None, "attempt": 1},
    ]
    (event,) = run.events()
    assert (event["event"], event["attempt"], event["step"]) == ("saved", 1, 2)
    assert event["time"].endswith("Z")
    recorder.close()


def test_attempts_are_counted_by_starts_and_resumes(run):
    for attempt, what in enumerate(["started", "resumed", "resumed"], start=1):
        recorder = Recorder(run)
        assert recorder.attempt == attempt
        recorder.event(what)
        recorder.event("saved")
        recorder.event("interrupted")
        recorder.close()
        assert run.state()["attempt"] == attempt
    assert [row["attempt"] for row in run.events("started", "resumed")] == [1, 2, 3]


def test_an_attempt_goes_on_in_the_same_files_after_a_torn_row(run):
    recorder = Recorder(run)
    recorder.event("started")
    recorder.train(1, loss=3.0)
    recorder.close()
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "ki')
    recorder = Recorder(run)
    recorder.train(2, loss=2.0)
    recorder.close()
    assert [(row["step"], row["attempt"]) for row in run.metrics()] == [(1, 1), (2, 2)]


def test_state_that_is_urgent_is_there_at_once(run):
    recorder = Recorder(run)
    for step in range(5):
        recorder.state(urgent=True, status="running", step=step)
        assert run.state()["step"] == step
    recorder.close()


def test_state_that_is_not_urgent_waits_and_nothing_is_lost(run):
    recorder = Recorder(run)
    recorder.state(urgent=True, status="running", step=0)
    written = (run.path / "state.json").stat().st_mtime_ns
    began = time.monotonic()
    recorder.state(step=1, train_loss=2.0)
    recorder.state(step=2)
    assert time.monotonic() - began < STATE_EVERY, "the machine is too slow for this test"
    assert run.state()["step"] == 0
    assert (run.path / "state.json").stat().st_mtime_ns == written
    time.sleep(STATE_EVERY)
    recorder.state(val_loss=1.0)
    assert {key: run.state()[key] for key in ("step", "train_loss", "val_loss")} == {
        "step": 2, "train_loss": 2.0, "val_loss": 1.0,
    }  # fmt: skip
    recorder.state(step=3)
    recorder.close()  # what waits is written
    assert run.state()["step"] == 3


def test_state_says_who_writes_and_when(run):
    recorder = Recorder(run)
    recorder.state(urgent=True, status="running")
    state = run.state()
    assert state["process"]["pid"] == os.getpid()
    assert is_same(state["process"])
    assert state["updated"].endswith("Z")
    recorder.close()


def test_the_next_attempt_knows_the_last_state_and_has_its_own_process(run):
    run.write_json("state", {"best_val_loss": 1.25, "process": {"pid": 1, "start": "1", "boot": "x"}})
    recorder = Recorder(run)
    recorder.state(urgent=True, step=1)
    assert run.state()["best_val_loss"] == 1.25
    assert run.state()["process"]["pid"] == os.getpid()
    recorder.close()


def test_a_loss_that_is_not_finite_leaves_the_state_json(run):
    recorder = Recorder(run)
    recorder.state(urgent=True, train_loss=float("inf"))
    recorder.close()
    strict = json.loads((run.path / "state.json").read_text(), parse_constant=pytest.fail)
    assert strict["train_loss"] is None


def test_close_gives_the_files_back(run):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("this system has no /proc to count descriptors in")
    before = len(os.listdir("/proc/self/fd"))
    recorder = Recorder(run)
    recorder.event("started")
    recorder.train(1, loss=1.0)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    recorder.sync()
    recorder.close()
    assert len(os.listdir("/proc/self/fd")) == before
