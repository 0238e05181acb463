"""The same text through every door (text, csv, jsonl, parquet, a Hub on loopback) is the same tokens; a run starts."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from utils.tests.data.dataset_server import DatasetHub

ROOT = Path(__file__).parents[1]
WIKITEXT = ROOT.parent / "shared" / "data" / "wikitext2-valid.txt"
NAME = "owner/wikitext"
DATA = ("data.tokenizer=bpe", "data.vocab_size=512", "data.val_fraction=0.1", "data.seq_len=64")
RUN = (
    "--preset", "debug", "model.shape.n_layer=1", "train.max_steps=2", "train.warmup_steps=0", "train.eval_batches=1",
    "train.sample_every=0", "train.threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The real text where it is; a user's clone has some lines of our own."""
    if WIKITEXT.is_file():
        return WIKITEXT.read_text(encoding="utf-8").split("\n")[:-1]
    return [
        line
        for i in range(1500)
        for line in (f" = Chapter {i} = ", "", f" It was day {i}, “fine” and naïve, at 5,{i:03d} m. ")
    ]


@pytest.fixture(scope="module")
def doors(lines, tmp_path_factory):
    """Settings by door, and the environment in which they work."""
    folder = tmp_path_factory.mktemp("doors")
    (folder / "w.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    with (folder / "w.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *([i, line] for i, line in enumerate(lines))])
    rows = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    (folder / "w.jsonl").write_text(rows, encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": lines}), folder / "w.parquet")
    with DatasetHub() as hub:
        hub.put_dataset(NAME, {"raw": {"train": [{"text": line} for line in lines]}})
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "TBT_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        environment.pop("HF_HUB_OFFLINE", None)
        yield (
            environment,
            {
                "text": ("data.source=text", f"data.path={folder / 'w.txt'}", "data.document=line"),
                "csv": ("data.source=csv", f"data.path={folder / 'w.csv'}"),
                "jsonl": ("data.source=jsonl", f"data.path={folder / 'w.jsonl'}"),
                "parquet": ("data.source=parquet", f"data.path={folder / 'w.parquet'}"),
                "hub": ("data.source=hub", f"data.name={NAME}", "data.config=raw"),
            },
        )


def tbt(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "utils", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_every_door_gives_the_same_tokens(doors):
    environment, settings = doors
    found = {}
    for door, words in settings.items():
        done = tbt(environment, "data", "prepare", *words, *DATA, "--json")
        assert done.returncode == 0, done.stderr
        found[door] = json.loads(done.stdout)
    assert len({numbers["fingerprint"] for numbers in found.values()}) == 1, found
    assert len({numbers["store"] for numbers in found.values()}) == len(settings)  # made four times, not shared


@pytest.mark.parametrize("door", ["text", "csv", "jsonl", "parquet", "hub"])
def test_a_run_starts(doors, door, tmp_path):
    environment, settings = doors
    done = tbt(environment, "train", *RUN, *DATA, *settings[door], "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert (state["status"], state["step"]) == ("completed", 2)
    made_of = json.loads((tmp_path / "run" / "meta.json").read_text())["data_made_of"]
    assert made_of
