"""A run's state in words says what is known and nothing else."""

import pytest

from utils.runs.progress import above_floor, outcome, progress_line

FULL = {
    "step": 120,
    "total_steps": 800,
    "train_loss": 0.51234,
    "val_loss": 0.53,
    "tokens_per_second": 12_345.0,
    "eta_seconds": 65.2,
}


def test_everything_known():
    assert progress_line(FULL) == "step 120/800  loss 0.5123  val 0.5300  12.3k tokens/s  1:05 left"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({}, "step 0/?"),
        ({"step": 3}, "step 3/?"),
        ({**FULL, "val_loss": None}, "step 120/800  loss 0.5123  12.3k tokens/s  1:05 left"),
        ({**FULL, "eta_seconds": None}, "step 120/800  loss 0.5123  val 0.5300  12.3k tokens/s"),
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
