"""The profiler switch: it writes a trace and a summary once, changes nothing, and never stops training."""

import json
from pathlib import Path

import pytest
import torch

from utils.runs.folder import RunFolder
from utils.tests.tiny import metrics_of, tiny_config, weights_hash
from utils.training.profile import Profile
from utils.training.run import run_training


def events_of(folder: Path, *kinds: str) -> list[dict]:
    return RunFolder(folder).events(*kinds)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory) -> Path:
    """A run that was recorded, and interrupted after that."""
    folder = tmp_path_factory.mktemp("profiled") / "run"
    config = tiny_config(folder, "train.profile=2")
    run_training(config, stop=lambda: 2 if events_of(folder, "profiled") else None)
    return folder


def test_the_trace_and_the_summary_are_of_the_steps_asked_for(profiled: Path):
    (event,) = events_of(profiled, "profiled")
    assert event["step"] == 11  # the tenth and the one after
    assert event["text"].startswith("steps 10 to 11 are in profile/trace.json")
    trace = json.loads((profiled / "profile" / "trace.json").read_text())
    named = [row for row in trace["traceEvents"] if row.get("name") == "aten::addmm"]
    assert named
    assert all(row["dur"] >= 0 for row in named)
    lines = (profiled / "profile" / "summary.txt").read_text().splitlines()
    assert lines[0].startswith("Steps 10 to 11: ")
    shares = [float(line.split("%")[0]) for line in lines if "%" in line]
    assert sum(shares) == pytest.approx(100, abs=3)
    assert sorted(shares[:-1], reverse=True) == shares[:-1]  # the last one is all the others
    assert "aten::addmm" in "\n".join(lines)
    assert sorted(path.name for path in (profiled / "profile").iterdir()) == ["summary.txt", "trace.json"]


def test_a_resumed_run_is_not_recorded_again_and_nothing_else_changed(profiled: Path, tmp_path: Path):
    assert RunFolder(profiled).state()["step"] == 11
    before = (profiled / "profile" / "trace.json").stat().st_mtime_ns
    run_training(tiny_config(profiled, "train.profile=2"))
    assert (profiled / "profile" / "trace.json").stat().st_mtime_ns == before
    assert len(events_of(profiled, "profiled")) == 1
    run_training(tiny_config(tmp_path / "plain"))
    assert not (tmp_path / "plain" / "profile").exists()
    assert metrics_of(profiled) == metrics_of(tmp_path / "plain")
    assert weights_hash(profiled) == weights_hash(tmp_path / "plain")


def test_a_short_run_is_recorded_from_its_first_step_and_as_far_as_it_goes(tmp_path: Path):
    run_training(tiny_config(tmp_path / "run", "train.profile=50", "train.max_steps=3", "train.sample_every=0"))
    (event,) = events_of(tmp_path / "run", "profiled")
    assert event["text"].startswith("steps 1 to 3 are in")


def test_a_failure_is_an_alert_and_training_goes_on(tmp_path: Path):
    config = tiny_config(tmp_path / "run", "train.profile=1")
    run = RunFolder(tmp_path / "run")
    run.create(config)
    (run.path / "profile").write_text("in the way")
    assert run_training(config).status == "completed"
    (alert,) = run.events("alert")
    assert alert["text"].startswith("the profiler failed, training goes on without it: ")
    assert not run.events("profiled")


def test_nothing_is_recorded_where_nothing_is_asked_for(tmp_path: Path):
    told: list[str] = []
    profile = Profile(tmp_path / "profile", 0, lambda what, **_: told.append(what))
    for step in range(20):
        profile.before(step, 20)
        torch.ones(2) + 1
        profile.after()
    profile.close()
    assert told == []
    assert list(tmp_path.iterdir()) == []
