"""A run's state in words says what is known and nothing else."""

import pytest

from utils.runs.progress import above_floor, alerts, outcome, percent, progress_line, split, split_line

FULL = {
    "step": 120,
    "total_steps": 800,
    "train_loss": 0.51234,
    "val_loss": 0.53,
    "tokens_per_second": 12_345.0,
    "mfu": 0.43,
    "eta_seconds": 65.2,
}


def test_everything_known():
    assert progress_line(FULL) == "step 120/800  loss 0.5123  val 0.5300  12.3k tokens/s  mfu 43 %  1:05 left"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({}, "step 0/?"),
        ({"step": 3}, "step 3/?"),
        ({**FULL, "val_loss": None}, "step 120/800  loss 0.5123  12.3k tokens/s  mfu 43 %  1:05 left"),
        ({**FULL, "eta_seconds": None}, "step 120/800  loss 0.5123  val 0.5300  12.3k tokens/s  mfu 43 %"),
        ({"step": 1, "total_steps": 2, "train_loss": 0.0}, "step 1/2  loss 0.0000"),
    ],
)
def test_what_is_not_known_is_left_out(state, text):
    assert progress_line(state) == text


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"best_val_loss": 0.75, "entropy_floor": 0.5}, "0.25 nats per token above the best possible"),
        ({"best_val_loss": 0.5, "entropy_floor": 0.0}, "0.50 nats per token above the best possible"),
        ({"best_val_loss": 0.75}, ""),
        ({"entropy_floor": 0.5}, ""),
        ({"best_val_loss": 0.75, "entropy_floor": None}, ""),
        ({}, ""),
    ],
)
def test_above_floor(state, text):
    assert above_floor(state) == text


def test_outcome():
    state = {"step": 800, "best_val_loss": 0.75, "best_step": 700, "entropy_floor": 0.5}
    assert outcome(state, "completed") == (
        "completed at step 800, best validation loss 0.7500 at step 700: 0.25 nats per token above the best possible"
    )
    assert outcome({**state, "entropy_floor": None}, "interrupted") == (
        "interrupted at step 800, best validation loss 0.7500 at step 700"
    )
    assert outcome({}, "failed") == "failed at step 0"


@pytest.mark.parametrize(
    ("share", "words"), [(0.43, "43 %"), (1.02, "102 %"), (0.0123, "1.2 %"), (0.0996, "10 %"), (0, "0.0 %")]
)
def test_percent(share, words):
    assert percent(share) == words


def test_where_the_time_went_in_one_line():
    state = {"share/backward": 0.55, "share/data": 0.0123, "share/saving": 0.004, "share/forward": None, "other": 0.4}
    assert split_line(state) == "data 1 % · backward 55 %"
    assert split(state) == {"data": 0.0123, "backward": 0.55, "saving": 0.004}
    assert split({"share/data": 7.0, "share/forward": -1.0}) == {"data": 1.0}  # whoever wrote that
    assert split_line({}) == ""


def test_what_somebody_should_know_is_in_order_and_short():
    skips = [{"event": "skipped", "step": step, "text": "left out"} for step in range(10, 60)]
    others = [{"event": "alert", "text": "odd"}, {"event": "rolled_back", "step": 30, "text": "back to step 20"}]
    many = [{"event": "out_of_memory", "step": step, "text": f"{step} rows"} for step in range(5)]
    assert alerts([*skips, *others, *many]) == [
        "step 0: odd",
        "step 2: 2 rows",
        "step 3: 3 rows",
        "step 4: 4 rows (5 times so far)",
        "step 30: back to step 20",
        "step 59: left out (50 times so far)",
    ]
    assert alerts([]) == []
