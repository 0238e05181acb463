"""Rows of steps that were done again, or never will be: what a run that went back shows."""

import json
import time

import pytest

from utils.config.load import load_config
from utils.runs.folder import LAYERS_FILE, METRICS_FILE, RunFolder
from utils.runs.layers import BINS
from utils.runs.recorder import Recorder
from utils.runs.rows import MOST_NAMES, LastRows

LAYER = {"name": "head", "shape": [2], "size": 2, "zeros": 0, "not_finite": 0, "gradient_norm": 1.0,
         "weight_norm": 1.0, "update_ratio": 0.1, "histogram": [0] * BINS}  # fmt: skip


@pytest.fixture
def run(tmp_path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create(load_config("debug"))
    return made


def shown(run: RunFolder) -> list[tuple]:
    return [(row["step"], row["kind"], row["attempt"]) for row in run.metrics()]


def test_a_run_that_went_back_shows_nothing_of_what_is_no_more(run: RunFolder):
    recorder = Recorder(run)
    recorder.event("started")
    for step in range(1, 7):
        recorder.train(step, loss=1.0)
        recorder.layers(step, [LAYER])
    recorder.val(4, loss=1.0)
    recorder.val(6, loss=9.0)
    recorder.close()
    again = Recorder(run)  # has written no layers yet
    again.rolled_back(4)
    assert shown(run) == [*((step, "train", 1) for step in range(1, 5)), (4, "val", 1)]
    assert [row["step"] for row in run.layers()] == [1, 2, 3, 4]
    again.train(5, loss=2.0)
    again.layers(5, [LAYER])
    again.close()
    assert shown(run)[-2:] == [(4, "val", 1), (5, "train", 2)]
    assert [row["step"] for row in run.layers()] == [1, 2, 3, 4, 5]


def test_going_back_further_each_time(run: RunFolder):
    recorder = Recorder(run)
    for first, to, left in (
        (1, 3, [1, 2, 3]),
        (4, 3, [1, 2, 3]),
        (4, 1, [1]),
        (4, 2, [1]),
    ):  # at last a step that is no more
        for step in range(first, 6):
            recorder.train(step, loss=1.0)
        recorder.rolled_back(to)
        assert [row["step"] for row in run.metrics()] == left
    recorder.close()
    assert not (run.path / LAYERS_FILE).exists()  # a run without statistics gets no file of them


def test_rows_that_a_stranger_wrote_cost_no_more_than_reading_them(run: RunFolder):
    lines = []
    for step in range(60_000):
        lines += [json.dumps({"step": step, "kind": "train"}), json.dumps({"step": step, "kind": "rolled_back"})]
    lines += ['{"step": -1, "kind": "rolled_back"}', '{"step": "x", "kind": "rolled_back"}', '{"kind": "rolled_back"}']
    (run.path / METRICS_FILE).write_text("\n".join(lines))
    (run.path / LAYERS_FILE).write_text("\n".join([json.dumps({**LAYER, "step": 3}), *lines[-3:]]))
    began = time.monotonic()
    assert len(run.metrics()) == 60_000
    assert time.monotonic() - began < 20  # looking through all rows at each would take minutes
    assert [row["step"] for row in run.layers()] == [3]


def test_there_is_an_end_to_the_names_of_one_step():
    rows = LastRows()
    for i in range(MOST_NAMES + 5):
        rows.add(1, f"layer {i}", {"i": i})
    rows.add(1, "layer 7", {"i": "new"})
    assert len(rows.in_order()) == MOST_NAMES
    assert rows.in_order()[7] == {"i": "new"}
