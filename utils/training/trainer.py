"""The training loop; knows no architecture, no file format and no screen.

Everything is a function of the step: batch, learning rate and random draws come from (seed, step,
micro-batch), so a run that was killed and resumed does the very same arithmetic as one that was not.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import nn

from utils.config.schema import TrainConfig
from utils.data.batching.tasks import TaskBatches
from utils.runs.recorder import Recorder
from utils.runtime.randomness import derive_seed
from utils.training.evaluate import count_tokens, evaluate, logits_of
from utils.training.loss import count_labels, perplexity, token_loss
from utils.training.optim import build_optimizer
from utils.training.precision import autocast_for, build_scaler
from utils.training.schedule import learning_rate


@dataclass
class Progress:
    """What of a run is not weights: small, JSON, saved in every checkpoint."""

    step: int = 0  # optimizer steps done
    settled: bool = True  # whether what is due after this step (evaluation, sample) is done, too
    best_step: int | None = None
    best_val_loss: float | None = None
    val_loss: float | None = None  # of the last evaluation, in nats per token
    train_loss: float | None = None  # of the last step, in nats per token
    tokens: int = 0  # that the model has read in training, what only fills up rows left out
    bad_evals: int = 0  # evaluations in a row that were no better
    stopped_early: bool = False


@dataclass(frozen=True)
class TrainResult:
    """How a call of `fit` ended."""

    status: str  # completed or interrupted
    progress: Progress
    signal: int | None = None


class Step(NamedTuple):
    """What one optimizer step was."""

    loss: float  # nats per label
    norm: float  # of the gradient over all parameters, before clipping
    rate: float  # learning rate
    tokens: int  # read, what only fills up rows left out


class Trainer:
    """Trains `model` to the end of its schedule, or until `stop` says so; `save` makes it last."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        train: TaskBatches,
        val: TaskBatches,
        recorder: Recorder,
        device: torch.device,
        precision: str,
        *,
        save: Callable[["Trainer", bool], None] = lambda trainer, is_best: None,
        sample: Callable[["Trainer"], None] = lambda trainer: None,
        stop: Callable[[], int | None] = lambda: None,
        keep_best: bool = True,
        floor: float | None = None,
        bytes_per_token: float | None = None,
    ) -> None:
        self.model, self.config, self.train, self.val, self.recorder = model, config, train, val, recorder
        self.device, self.save, self.sample, self.stop, self.floor = device, save, sample, stop, floor
        self.keep_best, self.bytes_per_token = keep_best, bytes_per_token
        self.tokens_per_step = train.tokens_per_batch * config.grad_accum_steps  # at most: rows may be shorter
        self.examples_per_step = config.batch_size * config.grad_accum_steps
        wanted = config.epochs * train.examples_per_epoch / self.examples_per_step
        self.total_steps = config.max_steps or max(1, math.ceil(wanted))
        self.optimizer = build_optimizer(model, config)
        self.autocast = autocast_for(precision, device)
        self.scaler = build_scaler(precision, device)
        self.progress = Progress()
        self._clock = Clock()

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        done = self.progress.step >= self.total_steps or self.progress.stopped_early
        return done and self.progress.settled

    def fit(self) -> TrainResult:
        """Run the loop from wherever `progress` stands. Raises FloatingPointError when the loss is not finite."""
        self.model.train()
        self._clock = Clock()
        signal = self.stop()
        while not self.finished and not signal:
            if self.progress.settled:
                self._step_and_record()
            improved = self._settle()
            signal = self.stop()  # asked once: what arrives later than this is seen after the next step
            if (improved and self.keep_best) or self.finished or signal or self._due(self.config.save_every):
                self.save(self, improved and self.keep_best)
        return TrainResult("completed" if self.finished else "interrupted", self.progress, signal)

    def train_step(self, step: int) -> Step:
        """Do optimizer step number `step` (from 0).

        What a model returns beside its logits to be made small (`aux_loss`, mean over the micro-batch) is added to
        what is differentiated, and is no part of the loss given back.
        """
        rate = learning_rate(step, self.config, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        accumulate = self.config.grad_accum_steps
        batches = [self.train.batch(step * accumulate + i) for i in range(accumulate)]
        # All micro-batches are weighed by the labels of the whole step, so 1 x 8 and 8 x 1 are the same step. Chats cut
        # short may hold no answer at all: such a step has nothing to learn from.
        labels = max(1, sum(int(count_labels(batch.labels)) for batch in batches))
        loss = torch.zeros((), device=self.device)
        for i, batch in enumerate(batches):
            torch.manual_seed(derive_seed(self.config.seed, "dropout", step, i))
            with self.autocast():
                logits = logits_of(self.model, batch, self.device)
                part = token_loss(logits, batch.labels.to(self.device, non_blocking=True))[0] / labels
            aux = getattr(self.model, "aux_loss", None)
            self.scaler.scale(part if aux is None else part + aux.float() / accumulate).backward()
            loss += part.detach()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        if not math.isfinite(loss.item()) or not (math.isfinite(norm.item()) or self.scaler.is_enabled()):
            raise FloatingPointError(
                f"the loss is {loss.item():.4g} and the gradient norm {norm.item():.4g} at step {step + 1}: training "
                "cannot go on. The last checkpoint is good; try a lower train.learning_rate, or precision fp32"
            )
        self.scaler.step(self.optimizer)  # fp16: left out, and the scale lowered, when a gradient overflowed
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return Step(loss.item(), norm.item(), rate, sum(map(count_tokens, batches)))

    def _step_and_record(self) -> None:
        """One optimizer step, its row of metrics and the state."""
        self._clock.start_step()
        done = self.train_step(self.progress.step)
        self._clock.end_step(done.tokens)
        self.progress.step += 1
        self.progress.tokens += done.tokens
        self.progress.settled, self.progress.train_loss = False, done.loss
        speed = self._clock.tokens_per_second()
        if self._due(self.config.log_every):
            self.recorder.train(
                self.progress.step,
                **{"train/loss": done.loss, "train/perplexity": perplexity(done.loss), "gradient_norm": done.norm},
                learning_rate=done.rate,
                tokens=self.progress.tokens,
                tokens_per_second=speed,
            )
        self.recorder.state(**self._state(), tokens_per_second=speed)

    def _settle(self) -> bool:
        """Evaluate and sample if that is due; True when this is the best model so far."""
        progress, improved, last = self.progress, False, self.progress.step >= self.total_steps
        if last or self._due(self.config.eval_every):
            result = evaluate(self.model, self.val, self.device, self.autocast, self.stop)
            if result is None:
                return False  # stopped half-way: done again after the resume
            improved = progress.best_val_loss is None or result.loss < progress.best_val_loss
            progress.val_loss = result.loss
            progress.bad_evals = 0 if improved else progress.bad_evals + 1
            if improved:
                progress.best_val_loss, progress.best_step = result.loss, progress.step
            progress.stopped_early = bool(self.config.patience) and progress.bad_evals >= self.config.patience
            bits = result.bits_per_byte(self.bytes_per_token) if self.bytes_per_token else None
            self.recorder.val(
                progress.step,
                **{"val/loss": result.loss, "val/perplexity": perplexity(result.loss)},
                **{"val/accuracy": result.accuracy, "val/bits_per_byte": bits},
            )
            self._check_floor(result.loss, result.tokens)
        if (last and self.config.sample_every) or self._due(self.config.sample_every):
            self.sample(self)
        progress.settled = True
        self.recorder.state(urgent=True, **self._state())
        return improved

    def _check_floor(self, loss: float, tokens: int) -> None:
        """A loss far below the least possible one is a bug: the model sees what it should predict."""
        # Chance explains `nats` below the floor with probability exp(-nats) at most (Markov's inequality).
        nats = 20.0
        if self.floor is not None and loss < self.floor - nats / tokens:
            self.recorder.event(
                "alert",
                step=self.progress.step,
                text=f"validation loss {loss:.4f} is below {self.floor:.4f}, the least any model can reach: "
                "labels leak into the input. Is the attention causal?",
            )

    def _due(self, every: int) -> bool:
        return bool(every) and self.progress.step % every == 0

    def _state(self) -> dict[str, object]:
        progress = asdict(self.progress)
        progress.pop("settled")
        left = (self.total_steps - self.progress.step) * self._clock.seconds_per_step()
        epoch = self.progress.step * self.examples_per_step / self.train.examples_per_epoch
        return {**progress, "total_steps": self.total_steps, "epoch": epoch, "eta_seconds": left}


class Clock:
    """Seconds per step: of training alone for the speed, and with all that goes on between for the ETA."""

    def __init__(self) -> None:
        self._begin = self._start = time.monotonic()
        self._mean = (0.0, 0.0)  # running means of seconds and of tokens in one step
        self._steps = 0

    def start_step(self) -> None:
        """Call before a step."""
        self._start = time.monotonic()

    def end_step(self, tokens: int) -> None:
        """Call after it, with how many it has read."""
        now, old = (time.monotonic() - self._start, float(tokens)), self._mean
        self._steps += 1
        self._mean = now if self._steps == 1 else (0.9 * old[0] + 0.1 * now[0], 0.9 * old[1] + 0.1 * now[1])

    def tokens_per_second(self) -> float:
        """While training, without what goes on between the steps."""
        return self._mean[1] / max(self._mean[0], 1e-9)

    def seconds_per_step(self) -> float:
        """Wall clock per step since `fit` began, evaluations and saves included."""
        return (time.monotonic() - self._begin) / max(1, self._steps)
