"""The training loop; knows no architecture, no file format and no screen.

Everything is a function of the step: batch, learning rate and random draws come from (seed, step,
micro-batch), so a run that was killed and resumed does the very same arithmetic as one that was not.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from utils.config.schema import TrainConfig
from utils.data.batching.tasks import TaskBatches
from utils.runs.recorder import Recorder
from utils.runtime.device import peak_memory
from utils.training.clock import Clock, times_left
from utils.training.ema import WeightAverage
from utils.training.evaluate import evaluate
from utils.training.guard import Guard
from utils.training.layer_stats import LayerStats
from utils.training.loss import perplexity
from utils.training.memory import HalfStepped
from utils.training.profile import Profile
from utils.training.schedule import examples_before, examples_in, learning_rate, total_steps
from utils.training.step import Step, Stepper

UNREAD = 16  # steps at most whose numbers may wait on a GPU before somebody looks


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
    rows: int | None = None  # examples that go through the model at once, where memory allowed fewer than wanted
    checkpointing: bool = False  # whether layers are computed again in the backward pass, for want of memory
    guard: Guard = field(default_factory=Guard)

    @classmethod
    def of(cls, saved: dict[str, object]) -> "Progress":
        """From what `asdict` made of one."""
        return cls(**{**saved, "guard": Guard(**saved.get("guard", {}))})  # type: ignore[arg-type]


@dataclass(frozen=True)
class TrainResult:
    """How a call of `fit` ended."""

    status: str  # completed or interrupted
    progress: Progress
    signal: int | None = None


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
        restore: Callable[["Trainer"], str] | None = None,
        sample: Callable[["Trainer"], None] = lambda trainer: None,
        answer: Callable[["Trainer"], Mapping[str, float]] = lambda trainer: {},
        stop: Callable[[], int | None] = lambda: None,
        keep_best: bool = True,
        floor: float | None = None,
        bytes_per_token: float | None = None,
        flops: float = 0.0,
        peak: float = 0.0,
        profile: Profile | None = None,
    ) -> None:
        self.model, self.config, self.train, self.val, self.recorder = model, config, train, val, recorder
        self.device, self.save, self.sample, self.stop, self.floor = device, save, sample, stop, floor
        self.restore, self.keep_best, self.bytes_per_token = restore, keep_best, bytes_per_token
        self.answer = answer  # writes answers and scores them: more metrics of an evaluation
        self.flops, self.peak, self.profile = flops, peak, profile  # of a token, of the device a second
        self.clock = Clock(flops, peak, device)
        self.stepper = Stepper(model, config, train, device, precision, halved=self._halved, clock=self.clock)
        self.optimizer, self.scaler = self.stepper.optimizer, self.stepper.scaler
        self.average = WeightAverage(model, config.ema_decay)
        self.tokens_per_step = train.tokens_per_batch * config.grad_accum_steps  # at most: rows may be shorter
        self.total_steps = total_steps(config, train.examples_per_epoch)
        self.progress = Progress()
        self._unread: list[Step] = []

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        done = self.progress.step >= self.total_steps or self.progress.stopped_early
        return done and self.progress.settled

    def fit(self) -> TrainResult:
        """Run the loop from wherever `progress` stands.

        Raises FloatingPointError when the loss stays not finite, or keeps jumping, whatever is tried.
        """
        self.model.train()
        self.stepper.working.train()
        self.stepper.rows = self.progress.rows or self.stepper.rows
        if self.progress.checkpointing:
            self.stepper.checkpointing = True
        self.clock = self.stepper.clock = Clock(self.flops, self.peak, self.device)
        signal = self.stop()
        while not self.finished and not signal:
            if self.progress.settled and not self._step_and_record():
                continue  # gone back to an earlier step
            best = self.progress.best_val_loss, self.progress.best_step
            with self.average.in_place():  # what is evaluated and sampled is what will be used
                improved = self._settle()
            signal = self.stop()  # asked once: what arrives later than this is seen after the next step
            if (improved and self.keep_best) or self.finished or signal or self._due(self.config.save_every):
                if reason := self._read():
                    self._go_back(reason)
                    continue
                # While something is wrong, what is saved may be just that, and push out what is good.
                if not (self.progress.guard.calm or improved or self.finished or signal):
                    continue
                self.clock.enter("saving")
                try:
                    self.save(self, improved and self.keep_best)
                except FloatingPointError as error:
                    self._go_back(str(error))
                except OSError as error:
                    if self.finished or signal:
                        raise
                    self.progress.best_val_loss, self.progress.best_step = best  # what is not kept is not the best
                    text = f"{error}: training goes on, and the next checkpoint is tried when it is due"
                    self.recorder.event("not_saved", step=self.progress.step, text=text)
                self.clock.enter("other")
        return TrainResult("completed" if self.finished else "interrupted", self.progress, signal)

    def train_step(self, step: int) -> Step:
        """Do optimizer step number `step` (from 0) at its learning rate."""
        rate = learning_rate(step, self.config, self.total_steps) * self.progress.guard.rate_scale
        done = self.stepper.step(step, rate)
        self.average.update(step, done.norm.isfinite() & done.loss.isfinite())  # else the weights stayed as they were
        return done

    def _step_and_record(self) -> bool:
        """One optimizer step, its row of metrics and the state; False if the run has gone back to an earlier step."""
        if self.profile:
            self.profile.before(self.progress.step, self.total_steps)
        self.clock.start_step()
        every, layers = self.config.stats_every, None
        if every and (self.progress.step + 1) % every == 0:
            layers = self.stepper.layers = LayerStats(self.model)
        try:
            done = self.train_step(self.progress.step)
        except HalfStepped as error:
            self.stepper.layers = None
            self._step_again(error)
            return False
        self.clock.end_step(done.tokens)
        if self.profile:
            self.profile.after()
        self.progress.step += 1
        if layers:
            self.stepper.layers = None
            self.recorder.layers(self.progress.step, layers.rows())
        self.progress.tokens += done.tokens
        self.progress.settled = False
        self._unread.append(done)
        is_logged = self._due(self.config.log_every)
        waits = self.device.type != "cpu" and not is_logged and not self._is_evaluated
        if (not waits or len(self._unread) >= UNREAD) and (reason := self._read()):
            self._go_back(reason)
            return False
        if is_logged and self.progress.train_loss is not None:
            loss = self.progress.train_loss
            self.recorder.train(
                self.progress.step,
                **{"train/loss": loss, "train/perplexity": perplexity(loss), "gradient_norm": done.norm.item()},
                learning_rate=done.rate,
                tokens=self.progress.tokens,
                **self.clock.row(),
            )
        self.recorder.state(**self._state(), **(self._live() if is_logged else {}))
        return True

    def _read(self) -> str | None:
        """Look at the numbers of the last steps; gives back why the run has to go back, or None."""
        steps, self._unread = self._unread, []
        seen = [(done, done.loss.item(), bool(done.finite)) for done in steps]
        self.clock.looked()
        for step, (done, loss, finite) in enumerate(seen, self.progress.step - len(seen) + 1):
            if reason := self.progress.guard.watch(loss, finite, self.config):
                return reason
            if finite:
                self.progress.train_loss = loss
            else:
                self.recorder.event(
                    "skipped",
                    step=step,
                    text=f"the loss was {loss:.4g} and the gradient norm {done.norm.item():.4g}: the step was left out",
                )
        return None

    def _go_back(self, reason: str) -> None:
        """To the last good checkpoint, with half the learning rate."""
        guard, step = self.progress.guard, self.progress.step
        if self.restore is None or guard.rollbacks >= self.config.max_rollbacks:
            raise FloatingPointError(
                f"{reason} at step {step}, having gone back {guard.rollbacks} times: training cannot go on. "
                "The last checkpoint is good; try a lower train.learning_rate, or train.precision=fp32"
            )
        where = self._restored()
        self.progress.guard.rollbacks = guard.rollbacks + 1
        self.progress.guard.rate_scale = guard.rate_scale / 2
        self.recorder.event(
            "rolled_back",
            step=step,
            to=self.progress.step,
            text=f"{reason}: back to {where}, with {self.progress.guard.rate_scale:g} of the learning rate",
        )

    def _step_again(self, error: HalfStepped) -> None:
        """From the last good checkpoint on, as the weights of this moment are half changed."""
        step = self.progress.step
        if self.restore is None:
            raise error
        where = self._restored()
        self.recorder.event("rolled_back", step=step, to=self.progress.step, text=f"{error}: back to {where}")

    def _restored(self) -> str:
        """Go to the last good checkpoint; what has been found out about this run since then stays known."""
        assert self.restore is not None
        old, self._unread = self.progress, []
        where = self.restore(self)
        new = self.progress
        new.rows, new.checkpointing = old.rows, old.checkpointing
        new.guard.rollbacks, new.guard.rate_scale = old.guard.rollbacks, old.guard.rate_scale
        new.guard.skipped = old.guard.skipped
        self.recorder.rolled_back(new.step)
        self.recorder.state(urgent=True, **self._state())
        return where

    def _halved(self, rows: int) -> None:
        self.progress.rows, self.progress.checkpointing = rows, self.stepper.checkpointing
        how = "its layers computed again in the backward pass" if self.stepper.checkpointing else "as many in each step"
        self.recorder.event(
            "out_of_memory",
            step=self.progress.step,
            rows=rows,
            text=f"memory ran out: {rows} at once from now on, {how}; the result is the same",
        )

    def _settle(self) -> bool:
        """Evaluate and sample if that is due; True when this is the best model so far."""
        progress, improved, last = self.progress, False, self.progress.step >= self.total_steps
        if self._is_evaluated:
            self.clock.enter("evaluation")
            result = evaluate(self.stepper.refreshed(), self.val, self.device, self.stepper.autocast, self.stop)
            if result is None:
                self.clock.enter("other")
                return False  # stopped half-way: done again after the resume
            improved = result.loss < (math.inf if progress.best_val_loss is None else progress.best_val_loss)
            progress.val_loss = result.loss
            progress.bad_evals = 0 if improved else progress.bad_evals + 1
            if improved:
                progress.best_val_loss, progress.best_step = result.loss, progress.step
            progress.stopped_early = bool(self.config.patience) and progress.bad_evals >= self.config.patience
            self.recorder.val(progress.step, **result.metrics(self.bytes_per_token), **self.answer(self))
            self.clock.enter("other")
            self._check_floor(result.loss, result.tokens)
        is_sampled = (last and self.config.sample_every) or self._due(self.config.sample_every)
        if is_sampled and not progress.guard.in_row:  # a model whose loss is not finite has nothing to say
            self.sample(self)
        progress.settled = True
        self.recorder.state(urgent=True, **self._state(), **self._live())
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

    @property
    def _is_evaluated(self) -> bool:
        return self.progress.step >= self.total_steps or self._due(self.config.eval_every)

    def _due(self, every: int) -> bool:
        return bool(every) and self.progress.step % every == 0

    def _state(self) -> dict[str, object]:
        progress = asdict(self.progress)
        progress.pop("settled")
        guard = progress.pop("guard")
        progress |= {name: guard[name] for name in ("skipped", "rollbacks", "rate_scale")}
        epoch = examples_before(self.progress.step, self.config) / self.train.examples_per_epoch
        return {
            **progress,
            "total_steps": self.total_steps,
            "epoch": epoch,
            "tokens_per_second": self.clock.tokens_per_second(),
            "eta_seconds": self._seconds_left(),
        }

    def _live(self) -> dict[str, object]:
        """What of the state takes a moment to find out."""
        shares = {f"share/{part}": round(share, 4) for part, share in self.clock.shares().items()}
        return {"mfu": self.clock.mfu(), "peak_memory": peak_memory(self.device), **shares}

    def _seconds_left(self) -> float | None:
        """With evaluations and saves; steps that are still to grow (batch warmup) counted as so many of the last."""
        step, total, config = self.progress.step, self.total_steps, self.config
        examples = examples_before(total, config) - examples_before(step, config)
        evaluations = times_left(step, total, config.eval_every)
        saves = times_left(step, total, config.save_every)
        if self.keep_best and not self.progress.bad_evals:  # as long as it gets better, every evaluation is saved
            saves = max(saves, evaluations)
        here = examples_in(max(0, step - 1), config)
        return self.clock.seconds_left(examples / here, {"evaluation": evaluations, "saving": saves})
