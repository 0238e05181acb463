"""The owner's contract of MetricsTracker, word for word."""

import math
import threading

import pytest
import torch

from utils.training.metrics_tracker import MetricsTracker


@pytest.fixture
def tracker() -> MetricsTracker:
    return MetricsTracker(use_wandb=False)


def log(tracker: MetricsTracker, epoch: int, val_loss: float | None) -> None:
    val = {} if val_loss is None else {"loss": val_loss, "accuracy": 0.5}
    tracker.log_epoch(epoch, {"loss": 2.0, "accuracy": 0.4}, val, 1e-3, 0.7, 12.5)


def test_perplexity(tracker: MetricsTracker):
    assert tracker.compute_perplexity(2.302585) == pytest.approx(10, rel=1e-5)
    assert tracker.compute_perplexity(1e6) == math.exp(100)


def test_accuracy(tracker: MetricsTracker):
    logits = torch.eye(4)[None]
    assert tracker.compute_accuracy(logits, torch.tensor([[0, 1, 3, -100]])) == pytest.approx(2 / 3)
    assert tracker.compute_accuracy(logits, torch.tensor([[0, 1, 0, 0]]), ignore_index=0) == 1.0
    with pytest.raises(ZeroDivisionError):
        tracker.compute_accuracy(logits, torch.full((1, 4), -100))


def test_epochs_have_the_agreed_keys(tracker: MetricsTracker):
    log(tracker, 0, 2.5)
    row = tracker.metrics_history[0]
    assert {
        "epoch", "train/loss", "train/perplexity", "train/accuracy", "val/loss", "val/perplexity", "val/accuracy",
        "learning_rate", "gradient_norm", "epoch_duration",
    } == {key for key in row if not key.startswith("system/")}  # fmt: skip
    assert row["val/perplexity"] == pytest.approx(math.exp(2.5))
    assert list(tracker.get_summary()["epoch"]) == [0]


def test_what_was_not_measured_is_missing(tracker: MetricsTracker):
    log(tracker, 0, None)
    assert not any(key.startswith("val/") for key in tracker.metrics_history[0])


def test_best_epoch(tracker: MetricsTracker):
    for epoch, loss in enumerate([3.0, 1.0, 2.0, float("nan")]):
        log(tracker, epoch, loss)
    assert tracker.get_best_epoch() == 1
    assert tracker.get_best_epoch("val/loss", "max") == 0
    with pytest.raises(ValueError, match="no epoch has the metric 'val/bleu'; logged: .*val/loss"):
        tracker.get_best_epoch("val/bleu")
    with pytest.raises(ValueError, match="mode must be min or max"):
        tracker.get_best_epoch(mode="best")  # type: ignore[arg-type]


def test_scalars(tracker: MetricsTracker):
    tracker.log_scalar("a", 1, step=5)
    tracker.log_scalar("a", torch.tensor(2.5))
    frame = tracker.get_step_metrics()
    assert list(frame.columns) == ["step", "metric", "value"]
    assert frame.to_dict("records") == [
        {"step": 5, "metric": "a", "value": 1.0},
        {"step": 0, "metric": "a", "value": 2.5},
    ]


def test_steps_count_optimizer_steps():
    tracker = MetricsTracker(use_wandb=False, gradient_accumulation_steps=3)
    for value in range(7):
        tracker.log_scalar("loss", value)
        tracker.log_scalar("other", value)
    frame = tracker.get_step_metrics()
    assert list(frame[frame.metric == "loss"].step) == [0, 0, 0, 1, 1, 1, 2]
    with pytest.raises(ValueError, match="gradient_accumulation_steps must be 1 or more, not 0"):
        MetricsTracker(gradient_accumulation_steps=0)


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_bad_names(tracker: MetricsTracker, name: object):
    with pytest.raises(ValueError, match="^metric_name must be"):
        tracker.log_scalar(name, 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["1", None, True, torch.ones(2), [1]])
def test_bad_values(tracker: MetricsTracker, value: object):
    with pytest.raises(ValueError, match="^value must be numeric"):
        tracker.log_scalar("a", value)  # type: ignore[arg-type]


def test_threads_lose_nothing(tracker: MetricsTracker):
    def work() -> None:
        for _ in range(500):
            tracker.log_scalar("x", 1.0)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tracker.get_step_metrics().step) == list(range(4000))


def test_a_failing_service_is_logged_and_stops_nothing(caplog: pytest.LogCaptureFixture, tmp_path, monkeypatch):
    # A real module named wandb that fails as a broken install or a lost network would.
    (tmp_path / "wandb.py").write_text("run = object()\ndef log(*a, **k): raise ConnectionError('no network')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    tracker = MetricsTracker(use_wandb=True)
    tracker.log_scalar("a", 1.0)
    log(tracker, 0, 1.0)
    assert "W&B did not take a: no network" in caplog.text
    assert len(tracker.get_step_metrics()) == len(tracker.get_summary()) == 1
    monkeypatch.delitem(__import__("sys").modules, "wandb")
