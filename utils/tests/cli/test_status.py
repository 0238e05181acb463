"""`tbt status` says where the time went and what somebody should know of, in words and for a machine."""

import json
from pathlib import Path

import pytest
import typer

from utils.cli.status import status
from utils.runs.folder import RunFolder
from utils.runs.lock import RunLock
from utils.tests.tiny import tiny_config


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run as a worker leaves it while it trains."""
    run = RunFolder(tmp_path / "run")
    run.create(tiny_config(run.path))
    numbers = {"tokens_per_second": 12_345.0, "mfu": 0.43, "eta_seconds": 65.0}
    shares = {"share/forward": 0.3, "share/backward": 0.62, "share/evaluation": 0.08}
    run.write_json("state", {"status": "running", "step": 5, "total_steps": 10, **numbers, **shares})
    events = [{"event": "out_of_memory", "step": 2, "text": "memory ran out: 8 examples at once from now on"},
              {"event": "skipped", "step": 4, "text": "the loss was nan\u001b[31m"}]  # fmt: skip
    (run.path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


def said(run: RunFolder, capsys, **options) -> str:
    with RunLock(run.path), pytest.raises(typer.Exit) as left:
        status(run.path, **options)
    assert left.value.exit_code == 0
    return capsys.readouterr().out


def test_in_words(run: RunFolder, capsys):
    assert said(run, capsys).splitlines() == [
        f"run: {run.path}",
        "running at step 5",
        "step 5/10  12.3k tokens/s  mfu 43 %  1:05 left",
        "time: forward 30 % · backward 62 % · evaluation 8 %",
        "alert at step 2: memory ran out: 8 examples at once from now on",
        "alert at step 4: the loss was nan?[31m",  # no control of it reaches the terminal
    ]


def test_for_a_machine(run: RunFolder, capsys):
    told = json.loads(said(run, capsys, json=True))
    assert (told["status"], told["step"], told["mfu"]) == ("running", 5, 0.43)
    assert told["split"] == {"forward": 0.3, "backward": 0.62, "evaluation": 0.08}
    assert told["alerts"][0] == "step 2: memory ran out: 8 examples at once from now on"
    assert not [key for key in told if key.startswith("share/")]
