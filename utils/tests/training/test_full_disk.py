"""A disk that is full for a while costs checkpoints, not the run; at the end it is said what is missing."""

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from utils.runs.folder import RunFolder
from utils.tests.tiny import metrics_of, samples_of, tiny_config, weights_hash
from utils.training.run import run_training

WORDS = ("train.save_every=2", "train.profile=0")


@pytest.fixture
def disk(tmp_path: Path):
    """A folder that is a file system of its own, of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True)
    if made.returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(filler: Path) -> None:
    """Take all the space there is."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))


def full_between(disk: Path, first: int, last: int) -> Callable[[], None]:
    """What a trainer polls: fills the disk after one step and empties it after another."""
    filler, run = disk / "filler", RunFolder(disk / "run")
    steps = iter(range(1000))

    def poll() -> None:
        step = next(steps)
        if step == first:
            fill(filler)
        if step == last:
            filler.unlink()
        assert run.exists()

    return poll


def test_a_full_disk_does_not_stop_training(disk: Path, tmp_path: Path):
    assert run_training(tiny_config(disk / "run", *WORDS), full_between(disk, 5, 20)).status == "completed"
    run_training(tiny_config(tmp_path / "whole", *WORDS))
    run = RunFolder(disk / "run")
    told = run.events("not_saved")
    assert told
    assert "could not be written to" in told[0]["text"]
    assert "(No space left on device); it takes about " in told[0]["text"]
    assert "training goes on, and the next checkpoint is tried when it is due" in told[0]["text"]
    assert metrics_of(run.path) == metrics_of(tmp_path / "whole")  # what could not be written then was written later
    assert samples_of(run.path) == samples_of(tmp_path / "whole")
    assert weights_hash(run.path) == weights_hash(tmp_path / "whole")


def test_a_disk_that_stays_full_ends_the_run_with_words_and_keeps_what_was_saved(disk: Path, tmp_path: Path):
    config = tiny_config(disk / "run", *WORDS)
    with pytest.raises(OSError, match=r"could not be written to .*No space left on device"):
        run_training(config, full_between(disk, 9, 1000))
    assert os.listdir(disk / "run" / "checkpoints")
    (disk / "filler").unlink()
    assert run_training(config).status == "completed"
    run_training(tiny_config(tmp_path / "whole", *WORDS))
    assert weights_hash(disk / "run") == weights_hash(tmp_path / "whole")
    assert metrics_of(disk / "run") == metrics_of(tmp_path / "whole")
