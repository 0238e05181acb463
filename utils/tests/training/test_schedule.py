"""The learning rate as a function of the step."""

import itertools

import pytest

from utils.config.schema import TrainConfig
from utils.training.schedule import learning_rate

SCHEDULES = ["cosine", "linear", "wsd", "constant"]


def config(schedule: str, **changes: float) -> TrainConfig:
    return TrainConfig(schedule=schedule, learning_rate=1.0, min_lr=0.1, warmup_steps=10, max_steps=100, **changes)


def rates(schedule: str, total: int = 100) -> list[float]:
    return [learning_rate(step, config(schedule), total) for step in range(total)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rises_to_the_peak_and_ends_at_the_minimum(schedule: str):
    got = rates(schedule)
    assert got[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert max(got) == got[10] == 1.0
    assert got[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    assert all(a >= b for a, b in itertools.pairwise(got[10:]))


def test_shapes_differ_in_the_middle():
    assert rates("cosine")[55] == pytest.approx(0.55, abs=0.02)
    assert rates("linear")[32] == pytest.approx(0.1 + 0.9 * (1 - 22 / 89))
    assert rates("wsd")[79] == 1.0
    assert rates("wsd")[90] == pytest.approx(0.1 + 0.9 * (1 - 10 / 19))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 5, 10, 11])
def test_runs_shorter_than_the_warmup_are_fine(schedule: str, total: int):
    assert all(0 < rate <= 1 for rate in rates(schedule, total))
