"""Learning rate, examples and length of a run as functions of the step."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.config.schema import TrainConfig
from utils.training.schedule import _sums, examples_before, examples_in, learning_rate, total_steps

SCHEDULES = ["cosine", "linear", "wsd", "constant"]


def config(schedule: str, **changes: float) -> TrainConfig:
    settings = {"decay_share": 0.2, **changes}
    return TrainConfig(schedule=schedule, learning_rate=1.0, min_lr=0.1, warmup_steps=10, max_steps=100, **settings)


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


@given(
    schedule=st.sampled_from(SCHEDULES), total=st.integers(1, 300), warmup=st.integers(0, 60),
    low=st.floats(0, 1), share=st.floats(0.01, 1),
)  # fmt: skip
def test_the_rate_rises_once_and_then_never_again(schedule: str, total: int, warmup: int, low: float, share: float):
    settings = TrainConfig(
        schedule=schedule, learning_rate=1.0, min_lr=low, warmup_steps=warmup, decay_share=share, max_steps=total + 60
    )
    got = [learning_rate(step, settings, total) for step in range(total)]
    top = min(warmup, total)
    assert all(a < b for a, b in itertools.pairwise(got[:top]))
    assert all(a >= b for a, b in itertools.pairwise(got[top:]))
    assert all(0 <= rate <= 1 for rate in got)
    assert all(rate >= low - 1e-12 for rate in got[top:])
    if total > top + 1 and (schedule in ("cosine", "linear") or (schedule == "wsd" and share * total > 2)):
        assert got[-1] == pytest.approx(low)


@pytest.mark.parametrize(("share", "stable"), [(0.2, 80), (0.5, 50), (1.0, 10)])
def test_wsd_is_stable_until_its_last_share(share: float, stable: int):
    got = [learning_rate(step, config("wsd", decay_share=share), 100) for step in range(100)]
    assert got[10:stable] == [1.0] * (stable - 10)
    assert got[stable + 1] < 1.0
    steps = [a - b for a, b in itertools.pairwise(got[stable:])]
    assert max(steps) == pytest.approx(min(steps))  # a straight line


def batches(**changes: int) -> TrainConfig:
    return TrainConfig(**{"max_steps": 1000, **changes})


plans = st.builds(
    batches, batch_size=st.integers(1, 70), grad_accum_steps=st.integers(1, 5), batch_warmup_steps=st.integers(0, 90)
)


@given(plan=plans, step=st.integers(0, 150))
def test_examples_follow_one_another(plan: TrainConfig, step: int):
    whole, ramp = plan.batch_size * plan.grad_accum_steps, plan.batch_warmup_steps
    sizes = [examples_in(i, plan) for i in range(step)]
    assert examples_before(step, plan) == sum(sizes)  # nothing is read twice or passed over, wherever a run resumes
    assert all(a <= b for a, b in itertools.pairwise(sizes))
    assert all(1 <= size <= whole for size in sizes)
    assert all(size == whole for size in sizes[ramp:])
    if ramp and step:
        assert sizes[0] == max(1, round(whole / 8))
    assert examples_in(ramp, plan) == whole


@given(plan=plans, epochs=st.floats(0.001, 5), per_epoch=st.integers(1, 3000))
def test_epochs_take_the_fewest_steps_that_read_them(plan: TrainConfig, epochs: float, per_epoch: int):
    plan = plan.model_copy(update={"max_steps": 0, "epochs": epochs})
    steps = total_steps(plan, per_epoch)
    assert examples_before(steps, plan) >= epochs * per_epoch - 1e-6
    assert steps == 1 or examples_before(steps - 1, plan) < epochs * per_epoch + 1e-6
    if not plan.batch_warmup_steps:
        assert steps == max(1, math.ceil(epochs * per_epoch / (plan.batch_size * plan.grad_accum_steps)))


def test_max_steps_say_the_length_themselves():
    assert total_steps(batches(max_steps=7, batch_warmup_steps=5), 100) == 7


def test_a_late_step_costs_no_more_than_the_first():
    plan = batches(batch_warmup_steps=1000, batch_size=8)
    examples_before(0, plan)  # adds up once
    known = _sums.cache_info().misses
    for step in range(0, 10**6, 1000):
        examples_in(step, plan)
    assert _sums.cache_info().misses == known
