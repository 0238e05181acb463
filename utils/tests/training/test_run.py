"""`run_training`: what it leaves, how it resumes, what it refuses."""

import json
import signal
from pathlib import Path

import pytest
import torch

from utils.config.load import dump_config, parse_config
from utils.inference.load import load_for_inference
from utils.runs.checkpoints import best_checkpoint, verify
from utils.runs.folder import RunFolder
from utils.runs.lock import RunLock
from utils.tests.tiny import metrics_of, samples_of, tiny_config, weights_hash
from utils.training.run import run_training


def stop_at(run: Path, step: int):
    """A signal that arrives once the run's metrics say `step`."""
    return lambda: signal.SIGINT if any(row["step"] >= step for row in RunFolder(run).metrics()) else None


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert run_training(tiny_config(run)).status == "completed"
    return run


def test_a_run_folder_tells_everything(finished: Path):
    run = RunFolder(finished)
    config = run.config()
    assert parse_config(dump_config(config)) == config
    assert run.status() == "completed"
    state = run.state()
    assert (state["step"], state["total_steps"]) == (12, 12)
    assert state["best_val_loss"] == min(row["val/loss"] for row in run.metrics() if row["kind"] == "val")
    meta = run.read_json("meta")
    assert {"config_hash", "seed", "data", "tokenizer", "created", "git_commit", "made_with"} <= set(meta)
    assert "torch" in run.read_json("environment")["packages"]
    assert [row["step"] for row in run.metrics() if row["kind"] == "train"] == list(range(1, 13))
    assert [row["step"] for row in run.metrics() if row["kind"] == "val"] == [4, 8, 12]
    events = [event["event"] for event in run.events()]
    assert (events[0], events[-1]) == ("started", "finished")
    assert set(samples_of(finished)) == {6, 12}


def test_checkpoints_are_model_folders(finished: Path):
    for folder in (finished / "checkpoints").glob("step-*"):
        assert verify(folder) is not None
    model, tokenizer = load_for_inference(finished)
    logits = model(torch.tensor([tokenizer.encode("Once")]))
    assert logits.shape == (1, 4, tokenizer.vocab_size)


def test_the_same_settings_train_the_same_weights(finished: Path, tmp_path: Path):
    run_training(tiny_config(tmp_path / "again"))
    assert weights_hash(tmp_path / "again") == weights_hash(finished)
    assert metrics_of(tmp_path / "again") == metrics_of(finished)
    assert samples_of(tmp_path / "again") == samples_of(finished)


@pytest.mark.parametrize("step", [1, 4, 6, 7, 11, 12])
def test_interrupted_and_resumed_equals_undisturbed(finished: Path, tmp_path: Path, step: int):
    run = tmp_path / "cut"
    result = run_training(tiny_config(run), stop_at(run, step))
    assert result.status == "interrupted"  # at 12, before the last evaluation
    assert run_training(tiny_config(run)).status == "completed"
    assert weights_hash(run) == weights_hash(finished)
    assert metrics_of(run) == metrics_of(finished)
    assert samples_of(run) == samples_of(finished)
    assert best_checkpoint(run / "checkpoints").name == best_checkpoint(finished / "checkpoints").name


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(finished: Path, tmp_path: Path):
    run = tmp_path / "damaged"
    run_training(tiny_config(run), stop_at(run, 9))
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 4
    weights.write_bytes(data)
    run_training(tiny_config(run))
    damaged = RunFolder(run).events("damaged")
    assert [event["checkpoint"] for event in damaged] == [newest.name]
    assert weights_hash(run) == weights_hash(finished)


@pytest.mark.parametrize(
    "override", ["train.eval_every=3", "train.eval_every=0", "train.log_every=5", "train.sample_every=0",
                 "train.save_every=1", "train.eval_batches=1", "checkpoint.keep_last=5"],
)  # fmt: skip
def test_looking_changes_no_weight(finished: Path, tmp_path: Path, override: str):
    run_training(tiny_config(tmp_path / "run", override))
    assert weights_hash(tmp_path / "run") == weights_hash(finished)


def test_accumulation_equals_a_larger_batch(tmp_path: Path):
    common = ("model.shape.dropout=0", "train.max_steps=4", "train.warmup_steps=0", "train.learning_rate=1e-3")
    run_training(tiny_config(tmp_path / "8x1", *common, "train.batch_size=8", "train.grad_accum_steps=1"))
    run_training(tiny_config(tmp_path / "1x8", *common, "train.batch_size=1", "train.grad_accum_steps=8"))
    for a, b in zip(RunFolder(tmp_path / "8x1").metrics(), RunFolder(tmp_path / "1x8").metrics(), strict=True):
        for key in ("train/loss", "gradient_norm", "learning_rate", "tokens"):
            assert (key in a) == (key in b) == (a["kind"] == "train")
            assert a.get(key, 0) == pytest.approx(b.get(key, 0), rel=1e-4)


def test_other_settings_are_refused_and_named(finished: Path):
    before = weights_hash(finished)
    with pytest.raises(ValueError, match=r"other settings \(train.max_steps: 12 -> 13\).*another --run-dir"):
        run_training(tiny_config(finished, "train.max_steps=13"))
    assert weights_hash(finished) == before


def test_other_text_is_refused(tmp_path: Path):
    book = tmp_path / "book.txt"
    book.write_text("".join(f"the cat sat on mat {i}, {i * i}\n" for i in range(200)))
    config = tiny_config(tmp_path / "run", "data.source=text", f"data.path={book}")
    run_training(config, stop_at(tmp_path / "run", 5))
    book.write_text("".join(f"the dog sat on mat {i}, {i * i}\n" for i in range(200)))
    with pytest.raises(ValueError, match=r"was trained on other text.*bring the old text back"):
        run_training(config)


def test_a_folder_has_one_writer(tmp_path: Path):
    config = tiny_config(tmp_path / "run")
    RunFolder(config.run_dir).create(config)
    with RunLock(tmp_path / "run"), pytest.raises(BlockingIOError, match="written by another process"):
        run_training(config)


def test_patience_stops_early_and_keeps_the_best(tmp_path: Path):
    # With a rate of next to nothing the loss stands still, so the first evaluation stays the best but for chance.
    config = tiny_config(
        tmp_path / "run", "train.patience=2", "train.eval_every=1", "train.learning_rate=0.5", "train.min_lr=0.5",
        "train.schedule=constant", "train.grad_clip=0", "train.max_steps=60",
    )  # fmt: skip
    result = run_training(config)
    assert result.progress.stopped_early
    assert result.progress.step == result.progress.best_step + 2 < 60
    saved = json.loads((tmp_path / "run/checkpoints/best.json").read_text())
    assert saved["step"] == result.progress.best_step
    assert run_training(config).status == "completed"  # and a second call adds nothing
    assert RunFolder(tmp_path / "run").state()["step"] == result.progress.step


def test_epochs_decide_the_length(tmp_path: Path):
    result = run_training(tiny_config(tmp_path / "run", "train.max_steps=0", "train.epochs=0.05"))
    per_epoch = (18_000 // 16 - 1) * 16
    assert result.progress.step == pytest.approx(0.05 * per_epoch / (4 * 2 * 16), abs=1.5)
    assert RunFolder(tmp_path / "run").state()["epoch"] == pytest.approx(0.05, abs=0.01)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path: Path):
    config = tiny_config(
        tmp_path / "run", "train.learning_rate=1e30", "train.min_lr=0", "train.warmup_steps=0", "train.grad_clip=0"
    )
    with pytest.raises(FloatingPointError, match="training cannot go on.*lower train.learning_rate"):
        run_training(config)
    run = RunFolder(tmp_path / "run")
    assert run.status() == "failed"
    assert "not go on" in run.state()["message"].replace("cannot", "not")
    assert not list(run.checkpoints.glob("step-*"))


def test_a_prompt_the_text_cannot_say_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="sample_prompt has characters the training text lacks: '€'"):
        run_training(tiny_config(tmp_path / "run", "data.tokenizer=char", "train.sample_prompt=€"))
