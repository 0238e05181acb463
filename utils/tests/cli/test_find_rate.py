"""`tbt find-rate`: a process of its own, walls for a stranger's model, and no run is changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from utils.cli.main import app
from utils.tests.tiny import TINY
from utils.tests.walls import needs_walls

ROOT = Path(__file__).parents[3]
SETTINGS = ("--preset", "debug", *TINY, "--steps", "30")


def find_rate(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "utils", "find-rate", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_suggests_a_rate_and_leaves_nothing_behind(tmp_path: Path):
    got = find_rate(tmp_path, *SETTINGS, "--from", "1e-5", "--to", "0.5", "--run-dir", "runs/mine", "--json")
    assert got.returncode == 0, got.stderr
    told = json.loads(got.stdout)
    assert 1e-5 <= told["suggestion"] < 0.5
    assert told["steps"][0]["learning_rate"] == pytest.approx(1e-5)
    assert len(told["steps"]) == 30 or told["stopped"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--steps", "3"), "3 steps: a range test takes 10 to 10,000"),
        (("--from", "1", "--to", "0.1"), "learning rates from 1 to 0.1: the first must be above 0 and below the last"),
        (("train.lr=3",), "unknown setting train.lr"),
        (("data.source=text", "data.path=missing.txt"), "missing.txt"),
        (("--model", "no/such/model/anywhere"), "no/such/model/anywhere"),
    ],
)
def test_bad_input_is_said_clearly(words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        CliRunner().invoke(app, ["find-rate", "--preset", "debug", *words], catch_exceptions=False)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_in_the_process_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["find-rate", *SETTINGS, "train.memory_limit_gb=0.01"]
    if sys.platform != "linux":
        pytest.skip("no limit is kept here")
    with pytest.raises(ValueError, match=r"^train\.memory_limit_gb=0\.01 is less than is taken before the first step"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


@needs_walls
def test_a_stranger_s_model_is_walled_off(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export = tmp_path / "export"
    export.mkdir()
    for name in ("model.py", "config.json"):
        (export / name).write_bytes((ROOT / "tests" / "exports" / "decoder" / name).read_bytes())
    (tmp_path / "secret").write_text("mine")
    code = export / "model.py"
    code.write_text(code.read_text() + f"\ntry:\n    open({str(tmp_path / 'secret')!r}, 'w').write('theirs')\n"
                                       "except OSError:\n    pass\n")  # fmt: skip
    words = ["find-rate", "--model", str(export), "--preset", "debug", *TINY[4:], "--steps", "12", "--json"]
    got = CliRunner().invoke(app, words, catch_exceptions=False)
    assert len(json.loads(got.stdout)["steps"]) > 2
    assert (tmp_path / "secret").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"export", "secret"}
