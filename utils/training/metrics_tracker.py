"""`MetricsTracker`: metrics of a training loop of your own, kept here and sent to Weights & Biases if wanted.

`run_training` does not need it: a run folder keeps its own metrics. This is for a loop you write yourself.
"""

import logging
import math
import numbers
import threading
from typing import TYPE_CHECKING, Any, Literal

import torch

from utils.training.loss import IGNORE, count_correct, perplexity

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

EPOCH_KEYS = ("loss", "perplexity", "accuracy")


class MetricsTracker:
    """Keeps what is logged, by step and by epoch; a tracker that fails is logged and never stops training."""

    def __init__(self, use_wandb: bool = True, gradient_accumulation_steps: int = 1) -> None:
        """`use_wandb` sends everything to the active W&B run, if there is one.

        With `gradient_accumulation_steps` = n, n calls of `log_scalar` without a step belong to one optimizer
        step. Raises ValueError if it is below 1.
        """
        if gradient_accumulation_steps < 1:
            raise ValueError(f"gradient_accumulation_steps must be 1 or more, not {gradient_accumulation_steps}")
        self.use_wandb = use_wandb
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.metrics_history: list[dict[str, Any]] = []  # one dict per epoch
        self._steps: list[dict[str, Any]] = []  # one dict per logged scalar
        self._calls: dict[str, int] = {}  # how often each metric was logged without a step
        self._lock = threading.Lock()

    def compute_perplexity(self, loss: float) -> float:
        """exp(loss), the loss in nats per token clipped at 100."""
        return perplexity(loss)

    def compute_accuracy(self, logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = IGNORE) -> float:
        """Share of counted labels that are the likeliest class; logits (..., V), labels (...).

        Both are taken as they are: labels must already be shifted. Raises ZeroDivisionError when every label
        is `ignore_index`.
        """
        right, counted = count_correct(logits, labels, ignore_index)
        return right / counted

    def log_epoch(
        self,
        epoch: int,
        train_metrics: dict[str, float],
        val_metrics: dict[str, float],
        learning_rate: float,
        gradient_norm: float,
        epoch_duration: float,
    ) -> None:
        """Keep one epoch: `loss` (nats per token) and `accuracy` of both parts, duration in seconds.

        What was not measured is missing, never 0. Perplexity is added from the loss.
        """
        row: dict[str, Any] = {"epoch": epoch}
        for part, metrics in (("train", train_metrics), ("val", val_metrics)):
            known = (
                {"perplexity": self.compute_perplexity(metrics["loss"]), **metrics} if "loss" in metrics else metrics
            )
            row |= {f"{part}/{key}": known[key] for key in (*EPOCH_KEYS, *known) if key in known}
        row |= {"learning_rate": learning_rate, "gradient_norm": gradient_norm, "epoch_duration": epoch_duration}
        row |= _gpu()
        with self._lock:
            self.metrics_history.append(row)
        self._send(row, step=None, commit=True)

    def log_scalar(self, metric_name: str, value: float, step: int | None = None, commit: bool = True) -> None:
        """Keep one number, from any thread; `step` counts optimizer steps, and by itself if left out.

        `commit=False` lets W&B wait for more of the same step. Raises ValueError for a name that is not text
        or a value that is not a number.
        """
        if not isinstance(metric_name, str) or not metric_name.strip():
            raise ValueError(f"metric_name must be a text that is not empty, not {metric_name!r}")
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"value must be numeric, not {type(value).__name__} ({metric_name})")
        with self._lock:
            if step is None:
                calls = self._calls.get(metric_name, 0)
                self._calls[metric_name] = calls + 1
                step = calls // self.gradient_accumulation_steps
            self._steps.append({"step": step, "metric": metric_name, "value": float(value)})
        self._send({metric_name: float(value)}, step, commit)

    def get_step_metrics(self) -> "pd.DataFrame":
        """What `log_scalar` kept, one row per call: columns step, metric, value."""
        import pandas as pd

        with self._lock:
            return pd.DataFrame(list(self._steps), columns=["step", "metric", "value"])

    def get_summary(self) -> "pd.DataFrame":
        """What `log_epoch` kept, one row per epoch."""
        import pandas as pd

        with self._lock:
            return pd.DataFrame(list(self.metrics_history))

    def get_best_epoch(self, metric: str = "val/loss", mode: Literal["min", "max"] = "min") -> int:
        """The epoch with the lowest (or highest) `metric`. Raises ValueError where no epoch has it."""
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, not {mode!r}")
        rows = [row for row in self.metrics_history if metric in row and not math.isnan(row[metric])]
        if not rows:
            known = sorted({key for row in self.metrics_history for key in row} - {"epoch"})
            raise ValueError(f"no epoch has the metric {metric!r}; logged: {', '.join(known) or 'nothing yet'}")
        best = (min if mode == "min" else max)(rows, key=lambda row: row[metric])
        return int(best["epoch"])

    def _send(self, row: dict[str, Any], step: int | None, commit: bool) -> None:
        if not self.use_wandb:
            return
        try:
            import wandb

            if wandb.run is not None:
                wandb.log(row, step=step, commit=commit)
        except Exception as error:  # the edge to a service: whatever it does, training goes on
            logger.warning("W&B did not take %s: %s", ", ".join(row), error)


def _gpu() -> dict[str, float]:
    """Memory in use and utilisation of the GPU, where there is one that tells."""
    if not torch.cuda.is_available():
        return {}
    found = {"system/gpu_memory_mb": torch.cuda.memory_allocated() / 1e6}
    try:
        found["system/gpu_utilization"] = float(torch.cuda.utilization())
    except Exception as error:  # needs NVML's Python bindings and a driver that answers
        logger.debug("no GPU utilisation: %s", error)
    return found
