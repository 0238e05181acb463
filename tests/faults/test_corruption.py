"""Whatever happens to the bytes of a checkpoint is found, and the one before it is taken."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.runs.checkpoints import newest_checkpoint
from utils.tests.tiny import tiny_config
from utils.training.run import run_training

BLOCK = 4096  # bytes that a disk may lose at once


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Path]:
    """The two checkpoints of a run, the newer one last."""
    run = tmp_path_factory.mktemp("runs") / "run"
    run_training(tiny_config(run, "checkpoint.keep_best=false", "train.ema_decay=0.9"))
    older, newer = sorted((run / "checkpoints").glob("step-*"))
    return [older, newer]


def damages(data: bytes, chance: random.Random, count: int) -> Iterator[tuple[str, bytes | None]]:
    """`count` ways to damage a file and what is left of it; None = it is gone."""
    yield "is gone", None
    yield "is empty", b""
    yield "is longer", data + b"\0"
    for i in range(count - 3):
        at = chance.randrange(len(data))
        if i % 5 == 0:
            yield f"ends at {at}", data[:at]
        elif i % 5 == 1 and any(data[at : at + BLOCK]):
            yield f"has zeros at {at}", data[:at] + bytes(len(data[at : at + BLOCK])) + data[at + BLOCK :]
        else:
            bit = chance.randrange(8)
            yield f"has bit {bit} of byte {at} turned", data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


@pytest.mark.parametrize("each", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_every_damage_is_found_and_the_older_one_taken(checkpoints: list[Path], tmp_path: Path, each: int):
    older, newer = checkpoints
    chance, injected = random.Random(each), 0
    files = sorted(path for path in newer.rglob("*") if path.is_file())
    assert {"MANIFEST.json", "model.safetensors", "training.safetensors", "optimizer.safetensors", "trainer.json"} <= {
        path.name for path in files
    }
    shutil.copytree(older, tmp_path / older.name)
    shutil.copytree(newer, tmp_path / newer.name)
    assert newest_checkpoint(tmp_path)[0] == tmp_path / newer.name
    for path in files:
        here, whole = tmp_path / newer.name / path.relative_to(newer), path.read_bytes()
        for what, left in damages(whole, chance, each):
            if left is None:
                here.unlink()
            else:
                here.write_bytes(left)
            taken, passed_over = newest_checkpoint(tmp_path)
            assert taken == tmp_path / older.name, f"{path.name} {what}"
            assert passed_over == [tmp_path / newer.name]
            injected += 1
        here.write_bytes(whole)
    assert injected >= (each - 3) * len(files)
    assert newest_checkpoint(tmp_path)[0] == tmp_path / newer.name


def test_files_that_change_places_are_found(checkpoints: list[Path], tmp_path: Path):
    older, newer = checkpoints
    for name in ("model.safetensors", "optimizer.safetensors", "trainer.json", "MANIFEST.json"):
        for folder in checkpoints:
            shutil.copytree(folder, tmp_path / folder.name, dirs_exist_ok=True)
        os.replace(tmp_path / older.name / name, tmp_path / newer.name / name)
        shutil.copyfile(older / name, tmp_path / older.name / name)
        assert newest_checkpoint(tmp_path)[0] == tmp_path / older.name, name
