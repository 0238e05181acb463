"""The benchmarks of recipes run: losses at equal seconds come out as tables, and what is done is not repeated."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

from utils.data.reading.stories import write_stories

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = """
model:
  kind: llama
  shape: {n_layer: 2, n_head: 2, n_embd: 32, block_size: 64}
train:
  batch_size: 12
  learning_rate: 1.0e-2
  warmup_steps: 10
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a recipe and with text under the name of the real one."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    (folder / "tinyshakespeare.txt").write_text(write_stories(30_000, seed=0), encoding="utf-8")
    return folder


@pytest.fixture
def bench(place: Path, monkeypatch):
    """Call a benchmark with words as its file is called; each of its runs is a process of its own, of half a second."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # where a file that is called finds those beside it
    monkeypatch.setenv("TBT_CACHE", str(place / "cache"))

    def call(name: str, *words: object) -> None:
        common = ["--data", place, "--threads", 1, "--seconds", 0.5, "--seeds", 1, "--out", place / f"{name}.md"]
        monkeypatch.setattr(sys, "argv", [name, *map(str, [*words, *common])])
        importlib.import_module(name).main()

    return call


def cells(place: Path, name: str, line: str) -> list[str]:
    """The cells of one line of a table."""
    text = (place / f"{name}.md").read_text(encoding="utf-8")
    return [c.strip() for row in text.splitlines() if row.startswith(f"| {line} |") for c in row.split("|")[1:-1]]


def test_loss_is_compared_at_equal_seconds(bench, place: Path):
    words = ["--contenders", "ours", "--recipe", place / "tiny.yaml", "--points", 2, "--keep", place / "done.jsonl"]
    bench("time_to_loss", *words)
    rows = [json.loads(line) for line in (place / "done.jsonl").read_text(encoding="utf-8").splitlines()]
    result = rows[0]["result"]
    assert len(rows) == 1
    assert result["curve"][-1][1] == result["steps"]
    assert 0.2 < result["seconds"] < 1.0
    assert result["tokens"] == result["steps"] * 12 * 64
    name, parameters, steps, _, _, loss, *_ = cells(place, "time_to_loss", "ours")
    assert (name, int(parameters.replace(",", "")), int(steps)) == ("ours", result["parameters"], result["steps"])
    assert float(loss.split()[0]) == pytest.approx(result["curve"][-1][2], abs=1e-3)
    assert result["curve"][-1][2] < 0.95 * math.log(result["vocab"])  # it has learned something
    assert result["curve"][-1][2] < result["curve"][0][2]
    assert result["made_with"] in ("fp32", "bf16")
    assert f"; computed in {result['made_with']}." in (place / "time_to_loss.md").read_text(encoding="utf-8")
    assert (place / "time_to_loss.png").read_bytes().startswith(b"\x89PNG")

    before = (place / "done.jsonl").read_bytes()
    bench("time_to_loss", *words)
    assert (place / "done.jsonl").read_bytes() == before  # nothing was trained again
    assert cells(place, "time_to_loss", "ours")[5] == loss


def test_changes_are_compared_with_the_base(bench, place: Path):
    (place / "changes.yaml").write_text("slow: {train.learning_rate: 1.0e-6, train.min_lr: 0}", encoding="utf-8")
    bench("ablation", "--base", place / "tiny.yaml", "--changes", place / "changes.yaml")
    base, slow = (cells(place, "ablation", name) for name in ("base", "slow"))
    assert base[1] == slow[1]
    gap = float(slow[4])
    assert gap > 0.1  # a model that does not move learns nothing
    assert float(slow[3].split()[0]) - float(base[3].split()[0]) == pytest.approx(gap, abs=2e-3)
    assert base[5] == "1.00"


def test_what_cannot_be_run_is_said_at_once(bench, place: Path, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench("ablation", "--base", place / "tiny.yaml", "--changes", "train.batchsize=3")
    assert "did you mean train.batch_size?" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        bench("time_to_loss", "--contenders", "ours,nanogpt-bf16")
    assert "no contender nanogpt-bf16 (bf16): choose from ours, nanogpt[-fitted|-compiled]" in capsys.readouterr().err


def test_intervals_and_times_are_right(bench):
    from against_clock import interval
    from time_to_loss import seconds_to

    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))
    many = interval([float(i % 2) for i in range(31)])
    assert many is not None
    assert many[1] - many[0] == pytest.approx(2 * 2.042 * math.sqrt(7.7419 / 30 / 31), abs=1e-3)  # t of 30: 2.042
    assert interval([1.0]) is None
    assert seconds_to(2.0, [(1.0, 10, 3.0), (2.0, 20, 1.0)]) == pytest.approx(1.5)
    assert seconds_to(2.0, [(1.0, 10, 3.0)]) is None
