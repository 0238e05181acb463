"""The benchmark of training speed runs from end to end and its numbers fit together."""

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.contenders.job import Watch
from benchmarks.contenders.shapes import CONTENDERS, SHAPES
from benchmarks.contenders.table import spread, table
from utils.config.schema import ModelShape
from utils.data.reading.stories import write_stories
from utils.models.gpt import GPT

ROOT = Path(__file__).parents[1]
ACCELERATE = importlib.util.find_spec("accelerate") is not None


@dataclass
class Done:
    """What a run of the benchmark left."""

    page: str
    picture: bytes
    lines: dict[str, dict]  # by name


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One round on the smallest model with one thread."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "text.txt").write_text(write_stories(60_000), encoding="utf-8")
    names = ["ours-fp32", "nanogpt", *(["hf-fp32"] if ACCELERATE else [])]
    command = [sys.executable, "benchmarks/train.py", "--shapes", "0.8M", "--rounds", "1", "--seconds", "0.2"]
    command += ["--threads", "1", "--contenders", ",".join(names), "--data", str(folder / "text.txt")]
    command += ["--out", str(folder / "train.md")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in (folder / "train-cpu.jsonl").read_text(encoding="utf-8").splitlines()]
    page = (folder / "train-cpu.md").read_text(encoding="utf-8")
    return Done(page, (folder / "train-cpu.png").read_bytes(), {line["name"]: line for line in lines})


def check(line: dict) -> None:
    """What has to hold of any measurement."""
    assert "error" not in line, line["error"]
    shape = SHAPES[line["shape"]]
    assert line["tokens"] == len(line["step_seconds"]) * shape.tokens_per_step > 0
    assert line["seconds"] == pytest.approx(sum(line["step_seconds"]), abs=1e-6 * len(line["step_seconds"]))
    assert line["seconds"] >= 0.2
    assert line["warm_up_seconds"] > 0
    assert line["threads"] == 1
    assert 5e7 < line["peak_rss"] < 5e9  # bytes: torch alone takes more than the one, nothing here the other
    positions = shape.block_size * shape.n_embd
    assert line["parameters"] == pytest.approx(shape.parameters + positions, abs=shape.n_embd * 20)  # other vocabulary


def test_measures_ours_and_says_who_is_missing(done: Done):
    peak, ours = done.lines["peak"], done.lines["ours-fp32"]
    assert peak["peak"]["fp32"] > 1e9
    assert peak["machine"]["threads"] == "1"
    check(ours)
    row = next(line for line in done.page.splitlines() if line.startswith("| ours-fp32 | fp32 |"))
    speed = ours["tokens"] / ours["seconds"]
    assert f"| {speed:,.0f} (" in row
    share = speed * ours["flops_per_token"] / peak["peak"]["fp32"]
    assert f"| {100 * share:.0f} % |" in row
    assert "- nanogpt, not measured in round 1: FileNotFoundError: no model.py in --nanogpt None" in done.page
    assert done.picture.startswith(b"\x89PNG")


@pytest.mark.skipif(not ACCELERATE, reason="transformers' Trainer needs accelerate")
def test_measures_a_peer_beside_ours(done: Done):
    peer, ours = done.lines["hf-fp32"], done.lines["ours-fp32"]
    check(peer)
    ratio = ours["tokens"] / ours["seconds"] / (peer["tokens"] / peer["seconds"])
    row = next(line for line in done.page.splitlines() if line.startswith("| ours-fp32 "))
    assert f"| {ratio:.2f} | {ratio:.2f} | - |" in row


def test_counts_the_weights_of_the_real_model():
    size = SHAPES["0.8M"]
    names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    model = GPT(ModelShape(**{name: getattr(size, name) for name in names}))
    without_positions = sum(p.numel() for p in model.parameters()) - model.position_embedding.weight.numel()
    assert size.parameters == without_positions
    assert SHAPES["124M"].parameters == pytest.approx(124e6, rel=0.01)


def test_ratios_are_taken_within_a_round():
    def line(name: str, number: int, tokens: int) -> dict:
        return {"round": number, "name": name, "shape": "0.8M", "tokens": tokens, "seconds": 2.0, "precision": "fp32",
                "flops_per_token": 10, "parameters": 1, "peak_rss": 2e9, "warm_up_seconds": number + 1.0,
                "compiled": name == "hf-fp32" and number > 0}  # fmt: skip

    lines = [line("hf-fp32", i, 100 * 10**i) for i in range(3)] + [line("ours-fp32", i, 300 * 10**i) for i in range(3)]
    lines.append({"round": 0, "name": "peak", "shape": "0.8M", "peak": {"fp32": 30000.0}})
    assert spread("0.8M", ["ours-fp32"], lines) == {"ours-fp32": (1500.0, 150.0, 15000.0)}
    row = next(row for row in table("0.8M", list(CONTENDERS), lines) if row.startswith("| ours-fp32"))
    assert any("| hf-fp32 | fp32, compiled in 2 of 3 rounds |" in row for row in table("0.8M", list(CONTENDERS), lines))
    assert row == "| ours-fp32 | fp32 | 1,500 (150..15,000) | 3.00 | 3.00 | - | 0 | 50 % | 2.00 GB | 1.0 / 2.5 |"


def test_the_watch_leaves_the_warm_up_out():
    times = iter([0.0, 5.0, 5.5, 6.5, 6.5, 7.0, 8.0, 10.5, 10.5])  # start; a first step that compiles; ...
    watch = Watch(4.0, "cpu", clock=lambda: next(times))
    watch.started()
    assert [watch.stepped() for _ in range(6)] == [False, False, False, False, False, True]
    assert watch.warm_up == 6.5
    assert watch.steps == [0.5, 1.0, 2.5]


def test_a_wrong_word_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # where a file that is called finds those beside it
    monkeypatch.setattr(sys, "argv", ["train.py", "--contenders", "ours-fp64"])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("train").main()
    assert "--contenders: ours-fp64 is none of nanogpt, nanogpt-compiled" in capsys.readouterr().err


ENDLESS = """
import sys
from workplace import call, workplace

with workplace() as folder:
    inner = "import os, tempfile, time; tempfile.mkdtemp(prefix=f'inner-{os.getpid()}-'); time.sleep(60)"
    call([sys.executable, "-c", inner], folder, {})
"""


def test_nothing_is_left_of_a_benchmark_that_is_ended(tmp_path: Path):
    begun = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], cwd=ROOT / "benchmarks", env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    until = time.monotonic() + 30
    while not (inner := list(tmp_path.glob("benchmark-*/inner-*"))):
        assert time.monotonic() < until
        time.sleep(0.02)
    begun.terminate()
    assert begun.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(inner[0].name.split("-")[1]), 0)
