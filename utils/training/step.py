"""One optimizer step: examples in, weights changed; knows no schedule of a run, no file and no screen."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from utils.config.schema import TrainConfig
from utils.data.batching.tasks import Batch, TaskBatches
from utils.runtime.randomness import derive_seed
from utils.training.clock import Clock
from utils.training.compiled import Compiled
from utils.training.evaluate import count_tokens, inputs_of
from utils.training.layer_stats import LayerStats
from utils.training.loss import IGNORE, linear_loss, training_loss
from utils.training.memory import KEPT, HalfStepped, is_out_of_memory, release
from utils.training.optim import build_optimizer
from utils.training.precision import WorkingCopy, autocast_for, build_scaler
from utils.training.schedule import examples_before, examples_in


class Step(NamedTuple):
    """What one optimizer step was. Tensors, so that nobody waits for a GPU before the numbers are wanted."""

    loss: Tensor  # nats per label, a scalar
    norm: Tensor  # of the gradient over all parameters, before clipping, a scalar
    finite: Tensor  # whether both were; if not, the weights were left as they were
    rate: float  # learning rate
    tokens: int  # read, what only fills up rows left out


class Stepper:
    """Does optimizer steps on `model`, whose weights stay in fp32 whatever it computes in.

    `rows` is how many examples go through the model at once. Where memory runs out it is halved and the step done
    again: its examples, and so its result, stay the same (but for dropout, which draws anew). Where one at a time is
    too much, a model that can (`checkpointing`) computes its layers again in the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        train: TaskBatches,
        device: torch.device,
        precision: str,
        *,
        halved: Callable[[int], None] = lambda rows: None,
        clock: Clock | None = None,
        ahead: bool | None = None,
    ) -> None:
        """`halved` hears of memory running out.

        `ahead`: whether a thread prepares the next step's batches meanwhile; None = where a GPU does the work.
        """
        self.model, self.config, self.train, self.device = model, config, train, device
        self.optimizer = build_optimizer(model, config)
        self.scaler = build_scaler(precision, device)
        self.copy = WorkingCopy(model) if precision == "bf16" and hasattr(model, "full_precision") else None
        self.autocast = autocast_for("fp32" if self.copy else precision, device)
        self.rows, self.halved, self.clock = train.batch_size, halved, clock or Clock()
        self.layers: LayerStats | None = None  # looks at the next steps, where somebody wants to know more of them
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._maker = ThreadPoolExecutor(1) if (device.type != "cpu" if ahead is None else ahead) else None
        self._next: tuple[tuple[int, int], Future[list[Batch]]] | None = None  # (step, rows), its batches
        working = self.working
        self._says_hidden = hasattr(working, "hidden")
        self._forward: Callable[..., Tensor] = working.hidden if self._says_hidden else working  # type: ignore[assignment]

    @property
    def working(self) -> nn.Module:
        """What computes: the model, or its copy in 16 bits."""
        return self.copy.model if self.copy else self.model

    def compile(self, warn: Callable[[str], None]) -> None:
        """Compile the forward and backward pass when they are first done; `warn` hears if that fails."""
        self._forward = Compiled(self._forward, warn)

    def refreshed(self) -> nn.Module:
        """What computes, with the model's weights of this moment: for evaluations."""
        if self.copy:
            self.copy.refresh()
        return self.working

    def step(self, number: int, rate: float) -> Step:
        """Do optimizer step `number` (from 0) with the learning rate `rate`.

        What a model returns beside its logits to be made small (`aux_loss`, mean over the micro-batch) is added to
        what is differentiated, and is no part of the loss given back. Raises what the model raises, RuntimeError where
        not even one example at a time fits into memory, and HalfStepped where the weights cannot be gone on from.
        """
        self.clock.enter("data")
        while True:
            try:
                loss, tokens = self._gradients(number)
                self._make_state()
                break
            except Exception as error:  # torch says "no memory" in several ways
                if not is_out_of_memory(error):
                    raise
                said = str(error)
            self._shrink(said, number)  # not before the error is gone: it holds all that the forward pass has made
        self.clock.enter("optimizer")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        try:
            norm, finite = self._apply(loss)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            said = str(error)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            return Step(loss, norm, finite, rate, tokens)
        if self.scaler.is_enabled():
            self.scaler.update(self.scaler.get_scale())  # or it would say that these gradients are unscaled already
        self._shrink(said, number)
        raise HalfStepped("memory ran out while the weights were changed")

    @property
    def checkpointing(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        return bool(getattr(self.working, "checkpointing", False))

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.working.checkpointing = on  # type: ignore[assignment]

    def rehearse(self, batch: Batch) -> None:
        """Do the forward and backward pass of a micro-batch, for the memory they take; leaves the gradient."""
        if self.copy:
            self.copy.refresh()
        torch.manual_seed(derive_seed(self.config.seed, "rehearsal"))
        with self.autocast():
            part, extra = self._loss(batch)
        aux = getattr(self.working, "aux_loss", None)
        (part + extra if aux is None else part + extra + aux.float()).backward()
        if self.copy:
            self.copy.collect()

    def foretold_seconds(self) -> float:
        """About how long an optimizer step takes, from two rehearsals of a micro-batch; 0 where memory runs out."""
        batch = self.train.examples(np.arange(self.rows))
        try:
            for _ in range(2):  # the first one chooses kernels and lays out memory
                began = time.perf_counter()
                self.rehearse(batch)
                if self.device.type != "cpu":
                    torch.accelerator.synchronize()
            return (time.perf_counter() - began) * self.config.grad_accum_steps
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return 0.0
        finally:
            self.forget()

    def forget(self) -> None:
        """Give back what a step has made, or has begun to make."""
        self.model.zero_grad(set_to_none=True)
        self.working.zero_grad(set_to_none=True)
        if getattr(self.working, "aux_loss", None) is not None:
            self.working.aux_loss = None  # type: ignore[assignment]  # it holds the whole forward pass
        release(self.device)

    def _shrink(self, said: str, number: int) -> None:
        """Make the next attempt smaller. Raises RuntimeError where it cannot be."""
        self.forget()
        if self.rows > 1:
            self.rows = -(-min(self.rows, examples_in(number, self.config)) // 2)
        elif hasattr(self.working, "checkpointing") and not self.checkpointing:
            self.checkpointing = True
        else:
            again = ", even with its layers computed again in the backward pass" if self.checkpointing else ""
            # oneDNN keeps what it has made for every number of examples that was tried: tens of MB each.
            tried = "begin with a lower train.batch_size, " if KEPT in said else ""
            raise RuntimeError(
                f"one example at a time is more than fits into memory{again}: {tried}lower data.seq_len, train a "
                f"smaller model, raise train.memory_limit_gb if it is set, or use a machine with more memory "
                f"({said[:300]})"
            )
        self.halved(self.rows)

    def _make_state(self) -> None:
        """Have the optimizer make what it keeps for each weight before any is changed.

        It would do so by itself in the midst of its first step, and memory that ran out there would leave some weights
        changed and others not. `found_inf` makes this a step that changes nothing.
        """
        new = [p for p in self._parameters if p.grad is not None and p not in self.optimizer.state]
        if not new:
            return
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.found_inf = torch.ones((), device=self.device)  # type: ignore[attr-defined]
        whole = False
        try:
            self.optimizer.step()
            whole = True
        finally:
            del self.optimizer.grad_scale, self.optimizer.found_inf  # type: ignore[attr-defined]
            for p in () if whole else new:
                self.optimizer.state.pop(p, None)

    def _batches(self, number: int) -> list[Batch]:
        """The micro-batches of a step: a pure function of its number, so it does not matter who makes them when."""
        wanted = (number, self.rows)
        batches = self._next[1].result() if self._next and self._next[0] == wanted else self._make(*wanted)
        if self._maker:
            self._next = (number + 1, self.rows), self._maker.submit(self._make, number + 1, self.rows)
        return batches

    def _make(self, number: int, rows: int) -> list[Batch]:
        first, count = examples_before(number, self.config), examples_in(number, self.config)
        examples = np.arange(first, first + count)
        batches = [self.train.examples(examples[i : i + rows]) for i in range(0, count, rows)]
        return [pinned(batch) for batch in batches] if self.device.type == "cuda" else batches

    def _gradients(self, number: int) -> tuple[Tensor, int]:
        """Leave the gradient of the step's mean loss in the model; gives back that loss, and tokens read."""
        batches = self._batches(number)
        examples = sum(len(batch.labels) for batch in batches)
        # All micro-batches are weighed by the labels of the whole step, so 1 x 8 and 8 x 1 are the same step. Chats cut
        # short may hold no answer at all: such a step has nothing to learn from.
        labels = max(1, sum(int((batch.labels != IGNORE).sum()) for batch in batches))
        loss = torch.zeros((), device=self.device)
        if self.copy:
            self.copy.refresh()
        for i, batch in enumerate(batches):
            self.clock.enter("forward")
            torch.manual_seed(derive_seed(self.config.seed, "dropout", number, i))
            with self.autocast():
                part, extra = self._loss(batch)
            aux = getattr(self.working, "aux_loss", None)
            whole = (part + extra) / labels
            self.clock.enter("backward")
            self.scaler.scale(whole if aux is None else whole + aux.float() * len(batch.labels) / examples).backward()
            if self.copy:
                self.copy.collect()
            loss += part.detach() / labels
            self.clock.enter("data")
        return loss, sum(map(count_tokens, batches))

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over the labels, in nats, and what is made small beside it."""
        ids, extra = inputs_of(batch, self.device)
        labels = batch.labels.to(self.device, non_blocking=True)
        smoothing, z = self.config.label_smoothing, self.config.z_loss
        said = self._forward(*ids, **extra)
        if self._says_hidden:
            return linear_loss(said, self.working.head.weight, labels, smoothing, z)  # type: ignore[union-attr,arg-type]
        return training_loss(said, labels, smoothing, z)

    def _apply(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Clip and step; weights stay as they are where the loss or its gradient is not finite."""
        clip = self.config.grad_clip
        self.scaler.unscale_(self.optimizer)
        if self.layers:
            self.layers.before()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = norm.isfinite() & loss.isfinite()
        if self.scaler.is_enabled():
            if clip:
                torch.nn.utils.clip_grads_with_norm_(self._parameters, clip, norm)
            self.scaler.step(self.optimizer)  # left out, and the scale lowered, when a gradient overflowed
            self.scaler.update()
            # An overflow of the scaled gradient is no news, as the scale finds its place; one without any scale is.
            overflows = not norm.isfinite() and self.scaler.get_scale() < 1.0
            return norm, torch.zeros_like(finite) if overflows else loss.isfinite()
        # The optimizer divides by the one and stops at the other by itself: no pass over the gradients, no waiting.
        self.optimizer.grad_scale = (norm / clip).clamp(min=1.0).float() if clip else None  # type: ignore[attr-defined]
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        return norm, finite


def pinned(batch: Batch) -> Batch:
    """The batch in memory from which a GPU reads by itself."""
    extra = {name: value.pin_memory() for name, value in batch.extra.items()}
    return Batch(tuple(ids.pin_memory() for ids in batch.inputs), batch.labels.pin_memory(), extra)
