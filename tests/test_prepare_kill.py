"""Killed at any instant, the same preparation finishes with the same bytes, and does not do again what was done."""

import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Small shards and always processes, so that there is something to interrupt.
PREPARE = """
import sys
from utils.config.schema import DataConfig
from utils.data.storing import build_store
from utils.data.storing.token_store import open_store
build_store.UNIT, build_store.SMALL, build_store.cores = 20_000, 0, lambda: 2
config = DataConfig(source="text", path=sys.argv[1], document="line", vocab_size=600, duplicates="ignore")
print(open_store(config).folder)
"""


def start(folder: Path, cache: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(folder / "text.txt")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TBT_CACHE": str(folder / cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, cache: str) -> dict[str, bytes]:
    """Run to the end; gives the bytes of all files in the cache."""
    words, errors = start(folder, cache).communicate(timeout=300)
    assert words, errors
    root = folder / cache / "tokens"
    assert [str(path) for path in root.iterdir()] == [words.strip()]  # no lock, nothing half made
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def shards(folder: Path, cache: str) -> dict[str, int]:
    """Which file each finished shard is."""
    found = {}
    for path in (folder / cache).glob("tokens/*/work/*-*-*.json"):
        part, side, number = path.stem.split("-")
        ids = path.parents[1] / f"{part}-{side}" / f"{number}.ids.bin"
        found[f"{part}-{side}/{ids.name}"] = ids.stat().st_ino
    return found


def test_killed_at_ten_random_moments(tmp_path: Path):
    draw = random.Random(10)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(3_000)]
    with (tmp_path / "text.txt").open("w") as file:
        file.writelines(f"{i} {' '.join(draw.choices(words, k=20))}\n" for i in range(8_000))
    begin = time.monotonic()
    whole = finish(tmp_path, "whole")
    seconds = time.monotonic() - begin
    assert len([name for name in whole if name.endswith(".ids.bin")]) > 40
    kills = kept = 0
    while kills < 10:
        before = shards(tmp_path, "killed")
        process = start(tmp_path, "killed")
        if kills % 2:  # while shards are written, however fast this machine is
            wanted = len(before) + draw.randint(1, 5)
            with suppress(FileNotFoundError):  # it has just given the folder its name, and ends
                while process.poll() is None and len(shards(tmp_path, "killed")) < wanted:
                    time.sleep(0.001)
        else:  # at any moment, mostly while it works: python itself needs a good part of the first half
            time.sleep(draw.uniform(0.2, 0.8) * seconds)
        alive = process.poll() is None
        process.kill()  # it alone: its own processes have to notice
        process.communicate()
        kills += alive
        done = shards(tmp_path, "killed")
        if done:
            assert all(done[name] == file for name, file in before.items())
            kept += len(before)
        else:  # all was done, or nothing yet
            built = tmp_path / "killed" / "tokens"
            if any(path.suffix == "" and path.is_dir() for path in built.glob("*")):
                assert finish(tmp_path, "killed") == whole
                subprocess.run(["rm", "-r", str(built)], check=True)  # and once more from the start
    left = shards(tmp_path, "killed")
    assert finish(tmp_path, "killed") == whole
    (store,) = (tmp_path / "killed" / "tokens").iterdir()
    assert all((store / name).stat().st_ino == file for name, file in left.items())
    assert kept or left, "no kill came while shards were written"


@pytest.mark.parametrize("victim", ["parent", "child"])
def test_no_process_is_left(tmp_path: Path, victim: str):
    draw = random.Random(1)
    with (tmp_path / "text.txt").open("w") as file:
        file.writelines(f"{i} {' '.join(draw.choices(['ab', 'cd', 'efg'], k=20))}\n" for i in range(40_000))
    process = start(tmp_path, "cache")
    children: list[int] = []
    deadline = time.monotonic() + 60
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(children) < 2 or not shards(tmp_path, "cache"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        children = [int(child) for child in tasks.read_text().split()]
        time.sleep(0.01)
    os.kill(process.pid if victim == "parent" else children[0], 9)
    _, errors = process.communicate(timeout=60)
    if victim == "child":
        assert "was killed by signal 9 (was there too little memory?): what is done is kept" in errors
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert finish(tmp_path, "cache")
