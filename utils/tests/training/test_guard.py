"""What counts as a run that goes wrong, and what is done about it."""

import json
import math
import random
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from utils.config.schema import RunConfig, TrainConfig
from utils.data.batching.batches import TrainBatches
from utils.data.batching.tasks import TaskBatches
from utils.models.load import load_model
from utils.runs.folder import RunFolder
from utils.tests.tiny import metrics_of, samples_of, tiny_config, weights_hash
from utils.training import run as run_module
from utils.training.guard import LASTING, PATIENCE, Guard
from utils.training.run import run_training
from utils.training.schedule import learning_rate
from utils.training.step import Stepper

CONFIG = TrainConfig()
QUIET = ("train.max_steps=24", "train.save_every=4", "train.eval_every=8", "train.sample_every=12")


def alarms(losses: list[float], config: TrainConfig = CONFIG) -> list[int]:
    """At which of these losses a run would go back."""
    guard, found = Guard(), []
    for i, loss in enumerate(losses):
        if guard.watch(loss, math.isfinite(loss), config):
            found.append(i)
            guard.high.clear()
            guard.in_row = 0
    return found


def test_one_hard_batch_is_no_spike_and_three_in_a_row_are():
    calm = [4.0 - 0.02 * i for i in range(100)]
    assert alarms([*calm, 9.0, *calm[-20:]]) == []
    assert alarms([*calm, 9.0, 9.0, *calm[-20:]]) == []
    assert alarms([*calm, 9.0, 9.0, 9.0]) == [102]
    assert alarms([*calm, 9.0, 9.0, 9.0], TrainConfig(spike=0)) == []
    assert alarms([*calm, 3.5, 3.5, 3.5]) == []  # 1.5 nats above


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_spike(seed: int):
    draw = random.Random(seed)
    assert alarms([max(0.0, draw.gauss(3.0, 1.0)) for _ in range(5000)]) == []  # batches of a few labels
    assert alarms([5.0 if draw.random() < 0.2 else 0.01 for _ in range(5000)]) == []  # a class, one text at a time
    falling = [1.5 + 6.0 * math.exp(-i / 30) + draw.gauss(0, 0.2) for i in range(500)]
    assert alarms(falling) == []


def test_divergence_in_the_first_steps_is_seen():
    assert alarms([5.5, 5.6, 7.0, 8.0, 8.0, 8.0, 8.0, 7.0]) == []  # above, but not twice train.spike above
    assert alarms([5.5, 5.6, 14.0, 30.0, 25.0, 20.0]) == []
    assert alarms([5.5, 5.6, 14.0, 30.0, 25.0, 20.0, 15.0]) == [6]


def test_what_is_not_finite_is_counted_and_waited_for():
    guard = Guard()
    told = [guard.watch(math.nan, False, CONFIG) for _ in range(PATIENCE)]
    assert told[:-1] == [None] * (PATIENCE - 1)
    assert f"not finite in {PATIENCE} steps in a row" in told[-1]
    guard = Guard()
    for _ in range(3):
        assert not any(guard.watch(math.inf, False, CONFIG) for _ in range(PATIENCE - 1))
        assert not guard.calm
        guard.watch(3.0, True, CONFIG)
        assert guard.calm
    assert guard.skipped == 3 * (PATIENCE - 1)


def test_it_survives_json():
    guard = Guard()
    for loss in (4.0, 3.9, 12.0, 3.8, 20.0):
        guard.watch(loss, True, CONFIG)
    again = Guard(**json.loads(json.dumps(asdict(guard))))
    assert again == guard
    assert len(guard.high) == 1 < LASTING


def stepper(precision: str = "fp32", **settings) -> Stepper:
    torch.manual_seed(0)
    config = TrainConfig(**{"batch_size": 4, "warmup_steps": 0, **settings})
    model = load_model(tiny_config(Path("unused"), "model.shape.dropout=0").model, 300, 0)
    ids = torch.randint(0, 300, (2000,), generator=torch.Generator().manual_seed(1)).numpy()
    return Stepper(model, config, TaskBatches(TrainBatches(ids, 16, 4, 0)), torch.device("cpu"), precision)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("first", [True, False])
def test_a_gradient_that_is_not_finite_changes_nothing(optimizer: str, bad: float, first: bool):
    steps = stepper(optimizer=optimizer)
    if not first:
        steps.step(0, 0.01)
    before = {name: p.detach().clone() for name, p in steps.model.named_parameters()}
    state = {key: value.clone() for s in steps.optimizer.state.values() for key, value in enumerate(s.values())}
    some = next(p for name, p in steps.model.named_parameters() if name.endswith("out.weight"))
    handle = some.register_hook(lambda gradient: gradient * bad)
    done = steps.step(1, 0.01)
    handle.remove()
    assert not done.finite
    for name, p in steps.model.named_parameters():
        assert torch.equal(p, before[name]), name
    after = {key: value for s in steps.optimizer.state.values() for key, value in enumerate(s.values())}
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert all(float(s["step"]) == (0 if first else 1) for s in steps.optimizer.state.values() if "step" in s)
    assert steps.step(2, 0.01).finite
    assert any(not torch.equal(p, before[name]) for name, p in steps.model.named_parameters())


def test_an_overflow_in_fp16_is_ordinary_until_there_is_no_scale_left():
    steps = stepper("fp16")
    some = next(p for name, p in steps.model.named_parameters() if name.endswith("out.weight"))
    some.register_hook(lambda gradient: gradient * math.inf)
    seen = []
    while not seen or (seen[-1] and len(seen) < 40):
        seen.append(bool(steps.step(len(seen), 0.01).finite))
    assert seen.count(True) == 16  # from 65536 down to 1 by halves
    assert not seen[-1]


def poison(monkeypatch, at: range, config: RunConfig, heals: bool = True) -> None:
    """In `run_training`, a weight's gradient is NaN at these optimizer steps; `heals`: at the whole learning rate only.

    A function of step and rate, as divergence is, so that a run that is killed meets the same again.
    """
    original, trained, bad = run_module.load_model, Stepper.step, [False]

    def load(*words):
        model = original(*words)
        some = next(p for name, p in model.named_parameters() if name.endswith("out.weight"))
        some.register_hook(lambda gradient: gradient * math.nan if bad[0] else gradient)
        return model

    def step(stepper, number, rate):
        is_whole = rate > 0.75 * learning_rate(number, config.train, config.train.max_steps)
        bad[0] = number in at and (is_whole or not heals)
        return trained(stepper, number, rate)

    monkeypatch.setattr(run_module, "load_model", load)
    monkeypatch.setattr(Stepper, "step", step)


def test_a_few_bad_steps_are_left_out(tmp_path: Path, monkeypatch):
    config = tiny_config(tmp_path / "run", *QUIET)
    poison(monkeypatch, range(6, 9), config)
    result = run_training(config)
    run = RunFolder(tmp_path / "run")
    assert result.status == "completed"
    assert [event["step"] for event in run.events("skipped")] == [7, 8, 9]
    assert "the step was left out" in run.events("skipped")[0]["text"]
    assert (run.state()["skipped"], run.state()["rollbacks"]) == (3, 0)
    assert not run.events("rolled_back")
    saved = [event["step"] for event in run.events("saved")]
    assert 8 in saved  # it was the best so far
    assert saved[-1] == 24


def test_bad_steps_in_a_row_go_back_to_the_last_good_checkpoint(tmp_path: Path, monkeypatch):
    config = tiny_config(tmp_path / "run", *QUIET)
    poison(monkeypatch, range(10, 99), config)
    assert run_training(config).status == "completed"
    run = RunFolder(tmp_path / "run")
    (back,) = run.events("rolled_back")
    assert (back["step"], back["to"]) == (15, 8)
    assert "back to step 8, with 0.5 of the learning rate" in back["text"]
    assert (run.state()["skipped"], run.state()["rollbacks"], run.state()["rate_scale"]) == (5, 1, 0.5)
    rates = {row["step"]: row["learning_rate"] for row in run.metrics() if row["kind"] == "train"}
    assert sorted(rates) == list(range(1, 25))
    assert all(row["gradient_norm"] is not None for row in run.metrics() if row["kind"] == "train")


def test_before_the_first_checkpoint_it_goes_back_to_the_beginning(tmp_path: Path, monkeypatch):
    config = tiny_config(tmp_path / "run", *QUIET, "train.save_every=0", "train.eval_every=0")
    poison(monkeypatch, range(1, 99), config)
    seen = []
    original = run_module.build_restore

    def restoring(*words):
        restore = original(*words)

        def wrapped(trainer):
            where = restore(trainer)
            fresh = load_model(config.model, trainer.model.shape.vocab_size, config.train.seed)
            seen.append(
                all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), fresh.parameters(), strict=True))
            )
            seen.append(not trainer.optimizer.state)
            return where

        return wrapped

    monkeypatch.setattr(run_module, "build_restore", restoring)
    assert run_training(config).status == "completed"
    assert RunFolder(tmp_path / "run").events("rolled_back")[0]["to"] == 0
    assert seen == [True, True]


def test_after_so_many_times_it_fails_and_the_last_checkpoint_is_good(tmp_path: Path, monkeypatch):
    config = tiny_config(tmp_path / "run", *QUIET, "train.max_rollbacks=2")
    poison(monkeypatch, range(10, 99), config, heals=False)
    with pytest.raises(
        FloatingPointError, match=r"not finite in 5 steps in a row at step 15, having gone back 2 times"
    ):
        run_training(config)
    run = RunFolder(tmp_path / "run")
    assert run.status() == "failed"
    assert len(run.events("rolled_back")) == 2
    assert sorted(path.name for path in run.checkpoints.glob("step-*"))[-1] == "step-0000000008"


@pytest.mark.parametrize("moment", ["before", "among", "after"])
def test_killed_equals_uninterrupted_with_a_rollback_in_between(tmp_path: Path, monkeypatch, moment: str):
    whole, cut = tiny_config(tmp_path / "whole", *QUIET), tiny_config(tmp_path / "cut", *QUIET)
    poison(monkeypatch, range(10, 99), whole)
    assert run_training(whole).status == "completed"
    run, (back,) = RunFolder(tmp_path / "cut"), RunFolder(tmp_path / "whole").events("rolled_back")
    assert (back["step"], back["to"]) == (15, 8)

    def kill():
        last = max([row["step"] for row in run.metrics()], default=0)
        there = {
            "before": last >= 9,
            "among": bool(run.events("skipped")),
            "after": bool(run.events("rolled_back")) and not [e for e in run.events("saved") if e["step"] > 8],
        }
        if there[moment]:
            raise KeyboardInterrupt  # nothing is saved, unlike after a signal

    with pytest.raises(KeyboardInterrupt):
        run_training(cut, kill)
    # What was done before going back is not shown, even by a run that ends here.
    assert max(row["step"] for row in run.metrics()) == {"before": 9, "among": 11, "after": 9}[moment]
    assert run_training(cut).status == "completed"
    assert weights_hash(tmp_path / "cut") == weights_hash(tmp_path / "whole")
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
    assert samples_of(tmp_path / "cut") == samples_of(tmp_path / "whole")
    assert run.state()["rate_scale"] == 0.5


def test_stopped_by_a_signal_among_bad_steps_equals_uninterrupted(tmp_path: Path, monkeypatch):
    whole, cut = tiny_config(tmp_path / "whole", *QUIET), tiny_config(tmp_path / "cut", *QUIET)
    poison(monkeypatch, range(10, 99), whole)
    run_training(whole)
    run = RunFolder(tmp_path / "cut")
    stopped = run_training(cut, lambda: signal.SIGINT if len(run.events("skipped")) == 2 else None)
    assert (stopped.status, stopped.progress.step) == ("interrupted", 12)
    assert run_training(cut).status == "completed"
    assert run.events("resumed")[0]["step"] == 12  # saved though something was wrong, and not gone back to
    assert run.events("rolled_back")[0]["to"] == 8
    assert weights_hash(tmp_path / "cut") == weights_hash(tmp_path / "whole")
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
