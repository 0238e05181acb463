"""The running average of the weights: what it is, what is saved of it, and that a run goes on from the other ones."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from utils.data.storing.token_store import open_store
from utils.models.folder import load_model_folder
from utils.runs.checkpoints import find_checkpoint, newest_checkpoint
from utils.runs.folder import RunFolder
from utils.tests.tiny import TINY, metrics_of, samples_of, tiny_config, weights_hash
from utils.tests.training.test_trainer import tiny_gpt, trainer
from utils.training.checkpoint import TRAINING_FILE, load_checkpoint
from utils.training.ema import WeightAverage, average_decay
from utils.training.evaluate_run import evaluate_checkpoint
from utils.training.optim import build_optimizer
from utils.training.run import run_training

ROOT = Path(__file__).parents[3]
ON = "train.ema_decay=0.8"
MOVED, STAYED = torch.tensor(True), torch.tensor(False)


def model_in(run: Path) -> torch.nn.Module:
    return load_model_folder(find_checkpoint(run / "checkpoints", "latest"))[0]


def all_of(run: Path) -> tuple:
    return weights_hash(run), metrics_of(run), samples_of(run)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "averaged"
    run_training(tiny_config(run, ON))
    return run


@pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (1, 2 / 11), (8, 0.5), (10_000, 0.99)])
def test_the_decay_rises_to_what_was_asked_for(step: int, expected: float):
    assert average_decay(step, 0.99) == pytest.approx(expected)


@pytest.mark.parametrize("scalars", [True, False], ids=["cpu", "as on a GPU"])
def test_the_average_is_what_the_formula_says_and_a_step_left_out_does_not_count(scalars: bool):
    class Elsewhere(torch.Tensor):  # says that it lies where asking for its value would mean to wait
        device = torch.device("cuda")

    model = tiny_gpt(20)
    average = WeightAverage(model, 0.9)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * (step + 1)
        moved = STAYED if step == 2 else MOVED
        average.update(step, moved if scalars else moved.as_subclass(Elsewhere))
        if step != 2:
            decay = min(0.9, (1 + step) / (10 + step))
            expected = {n: decay * expected[n] + (1 - decay) * p.detach() for n, p in model.named_parameters()}
    with average.in_place():
        for name, parameter in model.named_parameters():
            assert torch.allclose(parameter, expected[name], atol=1e-6), name


def test_the_model_has_its_own_weights_again_whatever_happens():
    model = tiny_gpt(20)
    average, before = WeightAverage(model, 0.9), model.token_embedding.weight.detach().clone()
    with torch.no_grad():
        model.token_embedding.weight += 1.0
    with average.in_place():
        assert torch.equal(model.token_embedding.weight, before)
        assert torch.equal(model.head.weight, before)  # tied
    with pytest.raises(IndexError), average.in_place():
        model(torch.tensor([[99]]))
    assert torch.equal(model.token_embedding.weight, before + 1.0)
    assert model.head.weight is model.token_embedding.weight


def test_a_step_whose_gradient_is_not_finite_leaves_the_average_alone(tmp_path: Path):
    model = tiny_gpt(20)
    run = trainer(model, torch.randint(0, 20, (3000,)).numpy(), tmp_path, ema_decay=0.9)
    run.train_step(0)
    with run.average.in_place():
        before = model.head.weight.detach().clone()
    hook = model.head.weight.register_hook(lambda gradient: gradient * float("nan"))
    assert not run.train_step(1).finite
    with run.average.in_place():
        assert torch.equal(model.head.weight, before)
    hook.remove()
    run.train_step(2)
    with run.average.in_place():
        assert not torch.equal(model.head.weight, before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_is_as_without_it_and_the_folder_holds_the_average(tmp_path: Path, precision: str):
    words = (f"train.precision={precision}", "train.learning_rate=0.1", "train.spike=0")
    run_training(tiny_config(tmp_path / "plain", *words))
    run_training(tiny_config(tmp_path / "averaged", ON, *words))
    plain, average = (dict(model_in(tmp_path / name).named_parameters()) for name in ("plain", "averaged"))
    training = load_file(find_checkpoint(tmp_path / "averaged" / "checkpoints", "latest") / TRAINING_FILE)
    assert set(training) == set(plain)
    for name, tensor in training.items():
        assert torch.equal(tensor, plain[name]), name
        assert not torch.equal(tensor, average[name]), name
    losses = [[r["val/loss"] for r in metrics_of(tmp_path / n) if r["kind"] == "val"] for n in ("plain", "averaged")]
    assert losses[0] != losses[1]
    assert samples_of(tmp_path / "plain") != samples_of(tmp_path / "averaged")


def test_what_was_evaluated_is_what_the_folder_holds(tmp_path: Path):
    config = tiny_config(tmp_path / "run", ON, "train.eval_batches=0", "train.precision=fp32")
    run_training(config)
    folder = find_checkpoint(tmp_path / "run" / "checkpoints", "best")
    found = evaluate_checkpoint(folder, config, open_store(config.data), "val")
    assert found["loss"] == pytest.approx(RunFolder(tmp_path / "run").state()["best_val_loss"], rel=1e-6)


def test_a_run_without_it_has_the_files_it_always_had(tmp_path: Path):
    run_training(tiny_config(tmp_path / "run", "train.max_steps=2"))
    folder, _ = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert not (folder / TRAINING_FILE).exists()


@pytest.mark.parametrize("step", [3, 8, 11])
def test_interrupted_and_resumed_equals_undisturbed(averaged: Path, tmp_path: Path, step: int):
    run = tmp_path / "cut"
    rows = RunFolder(run).metrics
    result = run_training(tiny_config(run, ON), lambda: 2 if any(row["step"] >= step for row in rows()) else None)
    assert result.status == "interrupted"
    assert run_training(tiny_config(run, ON)).status == "completed"
    assert all_of(run) == all_of(averaged)


def test_a_checkpoint_without_an_average_starts_one_at_its_weights(averaged: Path, tmp_path: Path):
    config = tiny_config(tmp_path / "old", "train.max_steps=2")
    run_training(config)
    folder, _ = newest_checkpoint(tmp_path / "old" / "checkpoints")
    model = tiny_gpt(256, 16, n_embd=16)
    average = WeightAverage(model, 0.9)
    load_checkpoint(folder, model, build_optimizer(model, config.train), average)
    with average.in_place():
        for name, saved in model_in(tmp_path / "old").named_parameters():
            assert torch.equal(model.get_parameter(name), saved), name
    # And one with an average is gone on with even by who wants none.
    folder, _ = newest_checkpoint(averaged / "checkpoints")
    load_checkpoint(folder, model, build_optimizer(model, config.train))
    for name, tensor in load_file(folder / TRAINING_FILE).items():
        assert torch.equal(model.get_parameter(name), tensor), name


def test_killed_and_started_again_equals_undisturbed(tmp_path: Path):
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    changed = (ON, "train.max_steps=60", "train.save_every=7", "train.eval_every=10", "train.stats_every=5")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "utils",
            "train",
            "--preset",
            "debug",
            *TINY,
            *changed,
            "--inline",
            "--run-dir",
            "killed",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while process.poll() is None and not list(killed.checkpoints.glob("step-??????????")) and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for run in (whole, killed):
        run_training(tiny_config(run.path, *changed))
    assert "resumed" in {event["event"] for event in killed.events()}
    assert all_of(killed.path) == all_of(whole.path)
    assert killed.layers() == whole.layers() != []
