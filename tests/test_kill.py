"""Killed at any instant, the same command finishes with the same weights and metrics, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.runs.checkpoints import best_checkpoint
from utils.runs.folder import RunFolder
from utils.tests.tiny import TINY, metrics_of, samples_of, weights_hash

STEPS = 400
WORDS = (
    "train", "--preset", "debug", *TINY, f"train.max_steps={STEPS}", "train.save_every=7", "train.eval_every=10",
    "train.sample_every=50",
)  # fmt: skip


def start(folder: Path, run: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "utils", *WORDS, "--run-dir", run],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a process group of its own: tbt and its worker
    )


def finish(folder: Path, run: str) -> float:
    """Run to the end; gives the seconds it took."""
    begin = time.monotonic()
    process = start(folder, run)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return time.monotonic() - begin


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, float]:
    """The folder of a run that nobody disturbed, and the seconds it took."""
    folder = tmp_path_factory.mktemp("runs")
    return folder / "whole", finish(folder, "whole")


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path: Path, whole: tuple[Path, float], kills: int):
    undisturbed, seconds = whole
    chance = random.Random(kills)
    killed = 0
    while killed < kills:
        process = start(tmp_path, "killed")
        # From before the folder exists to shortly after the last step; mostly while it trains.
        time.sleep(chance.uniform(0.0, seconds))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
        if RunFolder(tmp_path / "killed").status() == "completed" and killed < kills:
            _compare(tmp_path / "killed", undisturbed)
            subprocess.run(["rm", "-r", "killed"], cwd=tmp_path, check=True)  # and once more from the start
    finish(tmp_path, "killed")
    _compare(tmp_path / "killed", undisturbed)


def _compare(killed: Path, whole: Path) -> None:
    assert weights_hash(killed) == weights_hash(whole)
    assert metrics_of(killed) == metrics_of(whole)
    assert samples_of(killed) == samples_of(whole)
    assert best_checkpoint(killed / "checkpoints").name == best_checkpoint(whole / "checkpoints").name
    assert RunFolder(killed).state()["step"] == STEPS


def test_a_worker_whose_launcher_was_killed_is_joined_by_the_same_command(tmp_path: Path, whole: tuple[Path, float]):
    process = start(tmp_path, "orphan")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and RunFolder(tmp_path / "orphan").status() != "running":
        time.sleep(0.02)
    process.kill()  # the launcher alone
    process.communicate()
    finish(tmp_path, "orphan")
    events = [event["event"] for event in RunFolder(tmp_path / "orphan").events()]
    assert events.count("started") == 1
    assert "resumed" not in events
    assert weights_hash(tmp_path / "orphan") == weights_hash(whole[0])
