"""The clock: every second belongs to one part, speed is that of training, and what is left is right."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from utils.config.schema import TrainConfig
from utils.data.batching.batches import EvalBatches, TrainBatches
from utils.data.batching.tasks import TaskBatches
from utils.runs.folder import RunFolder
from utils.runs.progress import PARTS
from utils.runs.recorder import Recorder
from utils.tests.tiny import TIMES, tiny_config
from utils.training.clock import Clock, times_left
from utils.training.run import run_training
from utils.training.trainer import Trainer


class Time:
    """A clock that goes when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hand(monkeypatch) -> Time:
    """Moves the time that Clock sees."""
    hand = Time()
    monkeypatch.setattr("utils.training.clock.time", hand)
    return hand


def step(clock: Clock, hand: Time, tokens: int = 100, **seconds: float) -> None:
    """One step of the loop, whose parts take so long."""
    clock.start_step()
    for part, took in seconds.items():
        clock.enter(part)
        hand.now += took
    clock.end_step(tokens)
    clock.looked()


def visit(clock: Clock, hand: Time, part: str, seconds: float) -> None:
    clock.enter(part)
    hand.now += seconds
    clock.enter("other")


def test_every_second_belongs_to_one_part(hand: Time):
    clock = Clock()
    step(clock, hand, data=1, forward=2, backward=4, optimizer=8)
    visit(clock, hand, "evaluation", 16)
    visit(clock, hand, "saving", 32)
    hand.now += 64
    assert list(clock.split().values()) == [1, 2, 4, 8, 16, 32, 64]
    assert list(clock.split()) == list(PARTS)
    hand.now += 1
    assert clock.split() == {**dict.fromkeys(PARTS, 0), "other": 1}  # since the last call
    assert clock.shares() == {part: n / 128 for part, n in zip(PARTS, (1, 2, 4, 8, 16, 32, 65), strict=True)}


def test_speed_and_use_are_of_training_alone(hand: Time):
    clock = Clock(flops=5e9, peak=1e12)
    assert (clock.mfu(), clock.seconds_left(10, {})) == (None, None)
    for _ in range(5):
        step(clock, hand, tokens=100, forward=0.5, backward=0.5)
        visit(clock, hand, "evaluation", 30)
    assert clock.tokens_per_second() == pytest.approx(100)
    assert clock.mfu() == pytest.approx(0.5)
    assert Clock(flops=5e9).mfu() is None


def test_the_first_step_says_nothing_of_those_to_come(hand: Time):
    clock = Clock()
    step(clock, hand, forward=60)  # it compiles
    step(clock, hand, forward=1)
    assert clock.tokens_per_second() == pytest.approx(100)
    assert clock.seconds_left(10, {}) == pytest.approx(10)


def test_what_is_left_counts_evaluations_saves_and_what_is_between(hand: Time):
    clock = Clock()
    for _ in range(20):
        step(clock, hand, forward=1)
        hand.now += 0.25
    for _ in range(2):
        visit(clock, hand, "evaluation", 30)
    visit(clock, hand, "saving", 8)
    assert clock.seconds_left(10, {"evaluation": 3, "saving": 2}) == pytest.approx(10 * 1.25 + 3 * 30 + 2 * 8)
    assert clock.seconds_left(0, {}) == 0


def test_steps_that_were_not_looked_at_one_by_one_are_their_mean(hand: Time):
    clock = Clock()
    for _ in range(3):  # as on a GPU: quick to start, and somebody waits at the end
        for _ in range(4):
            clock.start_step()
            clock.end_step(100)
            hand.now += 0.001
        hand.now += 7.996
        clock.looked()
    assert clock.tokens_per_second() == pytest.approx(50)
    assert clock.seconds_left(10, {}) == pytest.approx(20)


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 40))
def test_times_left_counts_what_a_loop_would_do(done: int, total: int, every: int):
    done = min(done, total)
    due = [s for s in range(done + 1, total + 1) if s == total or (every and s % every == 0)]
    assert times_left(done, total, every) == len(due)


class Sleepy(nn.Module):
    """A model that takes its time, and always as much."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 50)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return self.table(input_ids)


def test_a_run_knows_when_it_will_be_done(tmp_path: Path):
    ids = np.arange(4000, dtype=np.uint16) % 50
    config = TrainConfig(max_steps=36, batch_size=2, warmup_steps=1, eval_every=6, sample_every=18, grad_accum_steps=1)
    run = RunFolder(tmp_path / "run")
    run.create(tiny_config(run.path))
    said: list[tuple[float, float]] = []

    def look(trainer: Trainer) -> None:
        left = trainer._seconds_left()
        assert left is not None
        said.append((left, time.monotonic()))

    trainer = Trainer(
        Sleepy(), config, TaskBatches(TrainBatches(ids, 16, 2, 0)), TaskBatches(EvalBatches(ids[:160], 16, 2, 4)),
        Recorder(run), torch.device("cpu"), "fp32", sample=look,
    )  # fmt: skip
    trainer.fit()
    (left, then), (nothing, end) = said
    assert 0.5 < left / (end - then) < 2  # half of it is evaluations, which the steps alone would miss
    assert nothing < 0.1


def test_a_run_writes_where_its_time_went(tmp_path: Path):
    config = tiny_config(tmp_path / "run", "train.log_every=3")
    began = time.monotonic()
    run_training(config)
    wall, run = time.monotonic() - began, RunFolder(tmp_path / "run")
    rows = [row for row in run.metrics() if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    for row in rows:
        assert set(TIMES) <= set(row)
        assert min(row["time/forward"], row["time/backward"], row["time/optimizer"], row["tokens_per_second"]) > 0
        assert row["mfu"] >= 0
    assert rows[1]["time/evaluation"] > 0  # after step 4
    assert rows[1]["time/saving"] > 0
    assert rows[0]["time/evaluation"] == 0
    assert 0 < sum(row[name] for row in rows for name in TIMES) < wall
    state = run.state()
    assert sum(state[f"share/{part}"] for part in PARTS) == pytest.approx(1, abs=0.01)
    assert state["share/evaluation"] > 0
    assert state["mfu"] > 0
    assert state["peak_memory"] > 10_000_000
    assert state["eta_seconds"] is None
