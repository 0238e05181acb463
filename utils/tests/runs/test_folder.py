"""The run folder: made whole or not at all, read at any time, honest about who writes it."""

import json
import math
import os
import re

import pytest

from utils.config.load import ConfigError, load_config
from utils.runs.folder import RowWriter, RunFolder, list_runs, now, open_run, read_lines
from utils.tests.runs.lock_holder import held

CONFIG = load_config("debug")


@pytest.fixture
def run(tmp_path):
    """A run that was just made."""
    made = RunFolder(tmp_path / "mine")
    made.create(CONFIG)
    return made


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_time_is_utc_and_sorts():
    first, second = now(), now()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first)
    assert first <= second


# -- made ------------------------------------------------------------------------------------------


def test_a_new_run_holds_its_settings(run, tmp_path):
    assert run.exists()
    assert run.config() == CONFIG
    assert run.name == "mine"
    assert names(tmp_path) == ["mine", "mine/checkpoints", "mine/config.yaml"]


def test_a_run_below_folders_that_are_not_there(tmp_path):
    run = RunFolder(str(tmp_path / "a" / "b" / "c"))
    assert not run.exists()
    run.create(CONFIG)
    assert run.config() == CONFIG


def test_making_it_again_loses_nothing(run):
    run.write_json("state", {"status": "completed"})
    (run.checkpoints / "step-0000000001").mkdir()
    before = names(run.path)
    run.check_settings(CONFIG)
    run.create(CONFIG)
    assert names(run.path) == before
    assert run.state() == {"status": "completed"}


@pytest.mark.parametrize("below", ["run", "a/b/run"])
def test_a_place_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    run = RunFolder(tmp_path / "file" / below)
    run.check_settings(CONFIG)
    text = rf"^the run folder {run.path} cannot be written \(Not a directory\): choose another --run-dir$"
    with pytest.raises(ValueError, match=text):
        run.create(CONFIG)
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_settings_that_cannot_be_written_leave_nothing_but_what_was_there(tmp_path):
    run = RunFolder(tmp_path / "run")
    (run.path / "config.yaml").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"cannot be written \(Is a directory\)"):
        run.create(CONFIG)
    assert names(tmp_path) == ["run", "run/config.yaml"]


def test_a_file_in_the_place_of_the_checkpoints(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.checkpoints.write_text("mine")
    with pytest.raises(ValueError, match=r"cannot be written \(File exists\)"):
        run.create(CONFIG)
    assert run.checkpoints.read_text() == "mine"


def test_a_name_too_long_for_the_disk_is_told_in_words(tmp_path):
    run = RunFolder(tmp_path / ("x" * 300))
    with pytest.raises(ValueError, match="cannot be written"):
        run.create(CONFIG)
    assert names(tmp_path) == []


# -- settings checked ------------------------------------------------------------------------------


def test_the_same_settings_go_on(run):
    run.check_settings(CONFIG)
    run.check_settings(CONFIG.model_copy(update={"run_dir": "elsewhere"}))


def test_other_settings_are_refused_and_named(run):
    other = load_config("debug", overrides=["train.seed=1", "train.max_steps=30"])
    text = (
        f"{run.path} holds a run with other settings (train.max_steps: 20 -> 30; train.seed: 1337 -> 1): "
        "give the old settings to go on with it, or another --run-dir to start a new run"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        run.check_settings(other)


@pytest.mark.parametrize("make", ["file", "full folder"])
def test_what_is_no_run_is_refused(tmp_path, make):
    path = tmp_path / "thesis"
    if make == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "chapter.txt").write_text("mine")
    with pytest.raises(ValueError, match=rf"^{path} exists and is not a run folder: choose another --run-dir$"):
        RunFolder(path).check_settings(CONFIG)


def test_an_empty_or_missing_folder_may_become_a_run(tmp_path):
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").check_settings(CONFIG)
    RunFolder(tmp_path / "none").check_settings(CONFIG)
    assert names(tmp_path) == ["empty"]


def test_what_a_kill_before_the_settings_left_behind_is_no_obstacle(tmp_path):
    # `create` was killed after it made the folder and before the settings had their name.
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    (run.path / "config.yaml.tmp-123").write_text("model:")
    run.check_settings(CONFIG)
    run.create(CONFIG)
    assert run.config() == CONFIG


def test_settings_that_were_damaged_are_told(run):
    (run.path / "config.yaml").write_text("model: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        run.config()


# -- state and status ------------------------------------------------------------------------------


def test_json_is_written_and_read(run):
    assert run.read_json("meta") == {}
    run.write_json("meta", {"é": [1, None], "step": 2})
    assert run.read_json("meta") == {"é": [1, None], "step": 2}
    assert (run.path / "meta.json").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"\x00" * 10])
def test_a_state_that_is_no_state_counts_as_none(run, content):
    (run.path / "state.json").write_bytes(content)
    assert run.state() == {}


def test_a_run_that_is_not_there_has_no_state(tmp_path):
    assert RunFolder(tmp_path / "none").state() == {}
    assert RunFolder(tmp_path / "none").metrics() == []
    assert RunFolder(tmp_path / "none").events() == []


@pytest.mark.parametrize("said", ["completed", "failed", "interrupted"])
def test_what_is_over_stays_what_it_said(run, said):
    run.write_json("state", {"status": said})
    assert run.status() == said


def test_a_run_lives_as_long_as_its_worker(run):
    run.write_json("state", {"status": "running"})
    assert run.status() == "interrupted"
    with held(run.path) as worker:
        assert run.status() == "running"
        worker.kill()
        worker.wait()
        assert run.status() == "interrupted"
    assert run.state() == {"status": "running"}  # reading never writes


def test_a_worker_that_has_not_said_anything_yet_is_queued(run):
    assert run.status() == "interrupted"
    with held(run.path):
        assert run.status() == "queued"
    assert run.status() == "interrupted"


# -- rows ------------------------------------------------------------------------------------------


def rows_of(path):
    return list(read_lines(path))


def test_rows_are_appended_one_by_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = RowWriter(path)
    writer.write({"step": 1, "text": "line\nend é 😀"})
    assert rows_of(path) == [{"step": 1, "text": "line\nend é 😀"}]  # there before any sync
    writer.write({"step": 2})
    writer.sync()
    writer.close()
    assert path.read_bytes().count(b"\n") == 2
    writer = RowWriter(path)
    writer.write({"step": 3})
    writer.close()
    assert [row["step"] for row in rows_of(path)] == [1, 2, 3]


def test_a_torn_last_line_is_closed_and_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    assert rows_of(path) == [{"step": 1}]
    writer = RowWriter(path)
    writer.write({"step": 3})
    writer.close()
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n'
    assert rows_of(path) == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize("size", range(1, 24))
def test_wherever_a_row_is_torn_the_others_are_read(tmp_path, size):
    path, whole = tmp_path / "metrics.jsonl", b'{"step": 2, "kind": "x"}\n'
    path.write_bytes(b'{"step": 1}\n' + whole[:size])
    writer = RowWriter(path)
    writer.write({"step": 3})
    writer.close()
    complete = [{"step": 2, "kind": "x"}] if size >= len(whole) - 1 else []
    assert rows_of(path) == [{"step": 1}, *complete, {"step": 3}]


def test_a_file_that_ends_well_gets_no_empty_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(3):
        writer = RowWriter(path)
        writer.write({"step": step})
        writer.close()
    assert path.read_bytes() == b'{"step": 0}\n{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("junk", [b"\x00" * 40, b"\xff\xff", b"[1, 2]", b"7", b"null", b'"text"', b"", b"{} {}"])
def test_a_line_that_is_no_row_is_passed_over(tmp_path, junk):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + junk + b'\n{"step": 2}\n')
    assert rows_of(path) == [{"step": 1}, {"step": 2}]


def test_what_is_not_finite_becomes_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = RowWriter(path)
    writer.write({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.0, "e": 1e308, "f": 7, "g": "nan", "h": True})
    writer.close()
    strict = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert strict == {"a": None, "b": None, "c": None, "d": 0.0, "e": 1e308, "f": 7, "g": "nan", "h": True}


def test_what_is_not_finite_is_null_in_the_state_too(run):
    run.write_json("state", {"train_loss": math.nan, "val_loss": -math.inf, "step": 3})
    strict = json.loads((run.path / "state.json").read_text(), parse_constant=pytest.fail)
    assert strict == {"train_loss": None, "val_loss": None, "step": 3}


def test_two_writers_do_not_mix_their_rows(tmp_path):
    path = tmp_path / "events.jsonl"
    one, two = RowWriter(path), RowWriter(path)
    for i in range(200):
        one.write({"from": 1, "i": i})
        two.write({"from": 2, "i": i})
    one.close()
    two.close()
    assert len(rows_of(path)) == 400


def test_metrics_come_by_step_and_the_last_attempt_counts(run):
    writer = RowWriter(run.path / "metrics.jsonl")
    for step, kind, loss in [
        (10, "train", 3.0), (20, "train", 2.0), (20, "val", 2.5), (30, "train", 1.5),
        (20, "train", 2.1), (20, "val", 2.6), (5, "train", 4.0),
    ]:  # fmt: skip
        writer.write({"step": step, "kind": kind, "loss": loss})
    writer.close()
    found = [(row["step"], row["kind"], row["loss"]) for row in run.metrics()]
    expected = [(5, "train", 4.0), (10, "train", 3.0), (20, "train", 2.1), (20, "val", 2.6), (30, "train", 1.5)]
    assert found == expected


def test_events_come_in_order_and_by_kind(run):
    writer = RowWriter(run.path / "events.jsonl")
    for i, what in enumerate(["started", "saved", "sample", "saved", "finished"]):
        writer.write({"event": what, "i": i})
    writer.close()
    assert [row["i"] for row in run.events()] == [0, 1, 2, 3, 4]
    assert [row["i"] for row in run.events("saved")] == [1, 3]
    assert [row["i"] for row in run.events("finished", "started")] == [0, 4]
    assert run.events("exploded") == []


@pytest.mark.parametrize("kept", [{"step": 3, "status": "failed", "epoch": 0.5, "device": "cpu", "message": None}])
def test_a_state_loses_what_cannot_be_shown(run, kept):
    strange = {"total_steps": "<b>", "best_step": -1, "val_loss": "x", "train_loss": 1e301, "eta_seconds": True}
    strange |= {"process": {"pid": "1"}, "speeds": [1], "attempt": 10**16}
    run.write_json("state", {**kept, **strange})
    assert run.state() == kept
    run.write_json("state", {"status": "owned"})
    assert run.state() == {}


def test_rows_of_a_wrong_shape_are_passed_over(run):
    rows = [
        "{}",
        '{"step": "1", "kind": "val"}',
        '{"step": 1e999, "kind": "val"}',
        '{"step": 1, "kind": [1]}',
        "[" * 9999,
    ]
    good = '{"step": 1, "kind": "val", "val/loss": "<b>", "val/accuracy": 0.5}'
    (run.path / "metrics.jsonl").write_text("\n".join([*rows, good]))
    assert run.metrics() == [{"step": 1, "kind": "val", "val/loss": None, "val/accuracy": 0.5}]
    events = ["{}", '{"event": 1}', '{"event": "alert", "step": "<img>", "text": "x"}', '{"event": "alert", "text": 1}']
    (run.path / "events.jsonl").write_text("\n".join([*events, '{"event": "alert", "step": 1, "text": "x"}']))
    assert run.events() == [{"event": "alert", "step": 1, "text": "x"}]


@pytest.mark.parametrize("content", [b"\xff", b"[" * 5000, b"a" * 1_000_001], ids=["bytes", "deep", "long"])
def test_settings_that_are_no_text_are_told(run, content):
    (run.path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match="config.yaml"):
        run.config()


# -- several runs ----------------------------------------------------------------------------------


def make(root, name, updated=None):
    run = RunFolder(root / name)
    run.create(CONFIG)
    if updated:
        run.write_json("state", {"updated": updated})
    return run


def test_runs_are_listed_by_last_activity(tmp_path):
    make(tmp_path, "old", "2026-11-01T10:00:00.000Z")
    make(tmp_path, "new", "2026-11-20T10:00:00.000Z")
    make(tmp_path, "silent")
    make(tmp_path, "middle", "2026-11-02T09:00:00.000Z")
    (tmp_path / "not a run").mkdir()
    (tmp_path / "file").write_text("x")
    assert [run.name for run in list_runs(tmp_path)] == ["new", "middle", "old", "silent"]
    assert list_runs(str(tmp_path / "none")) == []


def test_a_run_that_is_there_is_opened(run):
    assert open_run(str(run.path)).config() == CONFIG


def test_a_run_that_is_not_there_comes_with_those_that_are(tmp_path):
    for i in range(7):
        make(tmp_path, f"run{i}", f"2026-11-0{i + 1}T10:00:00.000Z")
    newest = ", ".join(str(tmp_path / f"run{i}") for i in (6, 5, 4, 3, 2))
    with pytest.raises(FileNotFoundError, match=f"^no run at {tmp_path / 'none'}; runs there: {newest}$"):
        open_run(tmp_path / "none")


def test_where_there_is_no_run_the_command_that_makes_one_is_told(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"^no run at {tmp_path}/none; no runs there yet: `tbt train` makes one$"
    ):
        open_run(tmp_path / "none")
    assert os.listdir(tmp_path) == []
