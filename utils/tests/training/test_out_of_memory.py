"""Memory that runs out in the midst of a run, wherever it does: the run goes on, or says what is wrong."""

import signal
from pathlib import Path

import pytest
import torch

from utils.runs.folder import RunFolder
from utils.tests.tiny import metrics_of, tiny_config, weights_hash
from utils.tests.training.test_guard import stepper
from utils.training import checkpoint
from utils.training import run as run_module
from utils.training.memory import HalfStepped
from utils.training.run import run_training
from utils.training.step import Stepper

WORDS = ("model.shape.dropout=0", "train.sample_every=0", "train.precision=fp32")


def take_too_much() -> None:
    """What torch really does where memory runs out: no machine has so much."""
    torch.empty(1 << 48)


def losses(run: Path) -> list[float]:
    return [row.get("train/loss", row.get("val/loss")) for row in metrics_of(run)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "plain"
    run_training(tiny_config(run, *WORDS))
    return run


def test_weights_changed_by_half_are_gone_back_from(plain: Path, tmp_path: Path, monkeypatch):
    apply, done = Stepper._apply, []

    def half(stepper: Stepper, loss: torch.Tensor) -> tuple:
        found = apply(stepper, loss)
        done.append(1)
        if len(done) == 7:
            take_too_much()
        return found

    monkeypatch.setattr(Stepper, "_apply", half)
    assert run_training(tiny_config(tmp_path / "run", *WORDS)).status == "completed"
    run = RunFolder(tmp_path / "run")
    (back,) = run.events("rolled_back")
    assert (back["step"], back["to"]) == (6, 4)
    assert back["text"] == "memory ran out while the weights were changed: back to step 4"
    assert [event["rows"] for event in run.events("out_of_memory")] == [2]
    assert (run.state()["rows"], run.state()["rollbacks"], run.state()["rate_scale"]) == (2, 0, 1.0)
    assert len(done) == 12 + 3  # steps 5 to 7 twice
    assert losses(run.path) == pytest.approx(losses(plain), rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_such_a_step_can_be_done_again(precision: str):
    steps = stepper(precision)
    steps.step(0, 0.01)
    apply = steps.optimizer.step
    steps.optimizer.step = lambda *words, **named: (apply(*words, **named), take_too_much())
    with pytest.raises(HalfStepped):
        steps.step(1, 0.01)
    steps.optimizer.step = apply
    assert all(p.grad is None for p in steps.model.parameters())
    assert steps.step(1, 0.01).finite
    assert steps.rows == 2


def crowd(model: torch.nn.Module) -> torch.nn.Module:
    """Have memory run out in each of the model's layers unless activations are given up."""

    def enter(block: torch.nn.Module, given: tuple) -> None:
        if model.training and not model.checkpointing:
            take_too_much()

    for block in model.blocks:
        block.register_forward_pre_hook(enter)
    return model


def test_where_one_example_is_too_much_layers_are_computed_again():
    tight, oracle, told = stepper(), stepper(), []
    crowd(tight.model)
    tight.halved, oracle.rows = told.append, 1
    assert float(tight.step(0, 0.01).loss) == float(oracle.step(0, 0.01).loss)
    assert told == [2, 1, 1]
    assert tight.checkpointing
    assert not oracle.checkpointing
    for got, want in zip(tight.model.parameters(), oracle.model.parameters(), strict=True):
        assert torch.equal(got, want)


def test_a_run_that_computes_layers_again_goes_on_so_after_a_resume(plain: Path, tmp_path: Path, monkeypatch):
    load = run_module.load_model
    monkeypatch.setattr(run_module, "load_model", lambda *words: crowd(load(*words)))
    run, config = RunFolder(tmp_path / "run"), tiny_config(tmp_path / "run", *WORDS)
    stopped = run_training(config, lambda: signal.SIGINT if any(row["step"] >= 6 for row in run.metrics()) else None)
    assert stopped.status == "interrupted"
    ended = run_training(config)
    assert (ended.status, ended.progress.rows, ended.progress.checkpointing) == ("completed", 1, True)
    told = run.events("out_of_memory")
    assert [(event["step"], event["rows"]) for event in told] == [(0, 2), (0, 1), (0, 1)]  # and never again
    assert "its layers computed again in the backward pass" in told[-1]["text"]
    assert losses(run.path) == pytest.approx(losses(plain), rel=1e-4)


@pytest.mark.parametrize("failures", [1, 2])
def test_memory_that_runs_out_while_saving(plain: Path, tmp_path: Path, monkeypatch, failures: int):
    save, asked = checkpoint.save_file, []

    def tight(*words) -> None:
        asked.append(1)
        if 2 <= len(asked) < 2 + failures:
            take_too_much()
        save(*words)

    monkeypatch.setattr(checkpoint, "save_file", tight)
    run, config = RunFolder(tmp_path / "run"), tiny_config(tmp_path / "run", *WORDS)
    if failures == 1:  # there is more once training has given back what it holds
        assert run_training(config).status == "completed"
        assert weights_hash(run.path) == weights_hash(plain)
        return
    with pytest.raises(RuntimeError, match="memory ran out while the checkpoint of step 8 was written"):
        run_training(config)
    assert run.status() == "failed"
    assert run_training(config).status == "completed"  # from the one before
    assert run.events("resumed")[0]["step"] == 4
    assert weights_hash(run.path) == weights_hash(plain)


def test_an_error_without_words_is_named(tmp_path: Path):
    def stop() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        run_training(tiny_config(tmp_path / "run", *WORDS), stop)
    assert RunFolder(tmp_path / "run").state()["message"] == "MemoryError"
