"""Short, timed training on the embedded stories, for a model of any task; judges nothing, draws nothing.

The text's exact entropy is known, so a causal model's loss has a floor that only a leak can break.
Shapes: B sequences, T positions, V = vocab_size, K classes.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from utils.config.schema import DataConfig, TrainConfig
from utils.data.batching.batches import EvalBatches, TrainBatches
from utils.data.storing.token_store import TokenStore, open_store
from utils.runtime.randomness import derive_seed
from utils.training.loss import IGNORE, token_loss
from utils.training.optim import build_optimizer
from utils.training.schedule import learning_rate
from utils.validation.subject import Subject, make_dense, with_extra

STORIES = 2_000_000  # characters; a minute on a few cores does not read them twice
VAL_SHARE = 0.005  # 10,000 characters: few enough to be read whole every time, and the floor is exact for the whole
LONGEST = 256  # positions
STEP_TOKENS = 2048  # tokens per optimizer step, if the model is fast enough
MASKED = 0.15  # share of the positions to guess (Devlin et al. 2019, https://arxiv.org/abs/1810.04805)
GROUPS = 4  # most classes that a classifier is asked to tell apart
TICKS = 1000  # a schedule by the clock is cut into so many steps
POINTS = 200  # most points of a drawn curve

Example = tuple[tuple[Tensor, ...], Tensor]  # what the model is called with; labels (B, T), or (B,) of classes


class CannotTell(ValueError):
    """The question can't be put to this model; the text says why."""


class CannotLearn(CannotTell):
    """No gradient reaches any parameter, so there is nothing to train."""


@dataclass(frozen=True)
class Budget:
    """Seconds that each check of tier 3 may take; a subject may carry its own as `subject.budget`.

    `steps` is the most optimizer steps of one training, 0 = what fits. Where steps are met before seconds, two
    calls do the same arithmetic.
    """

    overfit: float = 20.0
    stories: float = 60.0
    rates: float = 20.0
    baselines: float = 60.0
    settings: float = 30.0
    steps: int = 0


def tier3_data(vocab_size: int, block_size: int) -> DataConfig:
    """The stories as tier 3 reads them: `open_store` of this makes what the checks later only read.

    A tokenizer that fits the model: 1,024 pieces of words, else bytes, else characters. The last may still be
    too many (58), which the checks say.
    """
    kind = "bpe" if vocab_size >= 1024 else "byte" if vocab_size >= 256 else "char"
    seq_len = max(1, min(LONGEST, block_size))
    return DataConfig(
        source="stories", size=STORIES, val_fraction=VAL_SHARE, tokenizer=kind, vocab_size=1024, seq_len=seq_len
    )


def default_rate(model: nn.Module) -> float:
    """A learning rate by size alone: 3e-3 at a million parameters, falling with their cube root.

    From 125 million to 13 billion parameters that is within a factor of two of what Brown et al. 2020 used
    (table 2.1, https://arxiv.org/abs/2005.14165).
    """
    return min(1e-2, 3e-3 * (1e6 / max(1, count_parameters(model))) ** (1 / 3))


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers, tied ones once."""
    return sum(param.numel() for param in model.parameters() if param.requires_grad)


@dataclass
class Course:
    """What one training went through: per step, the loss of its batch in nats and the seconds since the start."""

    losses: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    diverged: bool = False  # whether a loss or a gradient that was not finite ended it

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return len(self.losses)

    def smooth(self, window: int = 10) -> list[float]:
        """Means over the last `window` losses, fewer at the start."""
        sums = np.concatenate([[0.0], np.cumsum(self.losses)])
        ends = np.arange(1, len(self.losses) + 1)
        starts = np.maximum(0, ends - window)
        return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


class Lesson:
    """The stories as batches for one task, of a size that one subject can take in its time."""

    def __init__(self, subject: Subject, seconds: float) -> None:
        """Open the text and time the model on it.

        Raises CannotTell when there is no text, it does not fit, or a step takes over a tenth of `seconds`.
        """
        self.task, self.seed, self.device = subject.task, subject.seed, subject.device
        if not count_parameters(subject.model):
            raise CannotLearn("no parameter is trainable")
        config = tier3_data(subject.vocab_size, subject.block_size)
        self.store = self._open(config, subject.vocab_size)
        self.seq_len = min(config.seq_len, subject.length or config.seq_len)
        if self.task == "seq2seq" and self.seq_len < 4:
            raise CannotTell(f"half a text to read and half to write need 4 positions; this model has {self.seq_len}")
        # An id that no text has: as a mask it cannot be mistaken for a token.
        counts = np.bincount(np.asarray(self.store.train), minlength=subject.vocab_size)
        absent = np.flatnonzero(counts[: subject.vocab_size] == 0)
        self.mask_id = int(absent[-1]) if len(absent) else 0
        self._shares = torch.from_numpy(counts[: self.store.tokenizer.vocab_size] / len(self.store.train))
        self.classes = self._classes(subject)
        self.batch_size = self._fit(subject, seconds)
        self._train = self._batches(self.batch_size)
        self._val = EvalBatches(self.store.val, self.seq_len, max(1, STEP_TOKENS // self.seq_len))

    @staticmethod
    def _open(config: DataConfig, vocab_size: int) -> TokenStore:
        try:
            store = open_store(config)
        except (OSError, ValueError) as error:
            raise CannotTell(f"the stories cannot be opened: {error}") from None
        if store.tokenizer.vocab_size > vocab_size:
            need = store.tokenizer.vocab_size
            raise CannotTell(f"the stories need {need} tokens even as characters, and the model has {vocab_size}")
        return store

    def _classes(self, subject: Subject) -> int:
        if self.task != "classification":
            return 0
        subject.model.eval()
        with torch.no_grad():
            outputs = subject.model(self._batches(1).batch(0)[0].to(self.device)).shape[-1]
        if outputs < 2:
            raise CannotTell(f"a classifier with {outputs} output has nothing to choose from")
        return min(GROUPS, outputs)

    def _batches(self, batch_size: int) -> TrainBatches:
        return TrainBatches(self.store.train, self.seq_len, batch_size, derive_seed(self.seed, "tier 3"))

    def _fit(self, subject: Subject, seconds: float) -> int:
        """Sequences per step: STEP_TOKENS tokens, or what the model can take 100 times in its seconds."""
        one, wanted = self._time(subject, 1), max(1, STEP_TOKENS // self.seq_len)
        if one > seconds / 10:
            raise CannotTell(f"one step on a single text takes {one:.1f} s: too long for a training of {seconds:.3g} s")
        if one * wanted > seconds:  # surely too much, though a batch costs less than its texts one by one
            wanted = max(1, int(seconds / 100 / one))
        self.step_seconds = self._time(subject, wanted)
        if self.step_seconds > seconds / 60:
            fewer = max(1, int(wanted * seconds / 100 / self.step_seconds))
            wanted, self.step_seconds = fewer, self.step_seconds * fewer / wanted
        return wanted

    def _time(self, subject: Subject, batch_size: int) -> float:
        """Seconds of one forward and backward pass: the faster of two, the first of which warms up."""
        batch, took = self._example(self._batches(batch_size).batch(0), 0), math.inf
        for _ in range(2):
            start = time.perf_counter()
            gradient(subject.model.train(), self.on_device(batch))
            took = min(took, time.perf_counter() - start)
            if took > 1.0:
                break
        subject.reset()
        return took

    @property
    def evaluation_seconds(self) -> float:
        """About how long the whole validation text takes: forward passes, each a third to a half of a step."""
        return 0.5 * self.step_seconds * len(self.store.val) / (self.batch_size * self.seq_len)

    def training_seconds(self, seconds: float) -> float:
        """What of `seconds` is left to train when one evaluation follows.

        Raises CannotTell when that is less than half.
        """
        left = 0.95 * seconds - self.evaluation_seconds
        if left < seconds / 2:
            need = self.evaluation_seconds
            raise CannotTell(f"reading the validation text takes about {need:.1f} s of the {seconds:.1f} s there are")
        return left

    @property
    def floor(self) -> float | None:
        """The least loss possible on the validation text in nats per token; known for causal models only.

        A masked model sees both sides, and half a text tells another amount about the other half.
        """
        return self.store.entropy_floor if self.task == "causal" else None

    @property
    def ignorance(self) -> float:
        """Nats per guess of who knows only how often each answer comes (the unigram entropy)."""
        if self.task == "classification":
            counts = torch.bincount(torch.cat([self.val(i)[1] for i in range(len(self))]), minlength=self.classes)
            shares = counts / counts.sum()
        else:
            shares = torch.from_numpy(np.bincount(np.asarray(self.store.val)) / len(self.store.val))
        return -torch.xlogy(shares, shares).sum().item()

    def __len__(self) -> int:
        return len(self._val)

    def train(self, k: int) -> Example:
        """Training example number k; the same for every model with this lesson."""
        return self._example(self._train.batch(k), k)

    def few(self, texts: int, length: int) -> Example:
        """One small example to learn by heart; the classes of its texts are drawn, not read from them."""
        ids, labels = (part[:, :length] for part in self._batches(texts).batch(0))
        inputs, labels = self._example((ids, labels), 0)
        if self.task == "classification":
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "classes"))
            labels = torch.randint(self.classes, labels.shape, generator=generator)
        return inputs, labels

    def val(self, i: int) -> Example:
        """Validation example i of len(self): together the whole validation text, always the same."""
        return self._example(self._val.batch(i), -1 - i)

    def _example(self, batch: tuple[Tensor, Tensor], k: int) -> Example:
        ids, labels = batch
        if self.task == "masked":
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "mask", k))
            hidden = torch.rand(ids.shape, generator=generator) < MASKED
            hidden[:, 0] |= ~hidden.any(1)
            counted = hidden & (labels != IGNORE)  # not what only fills up the end of the text
            return (ids.masked_fill(hidden, self.mask_id),), ids.masked_fill(~counted, IGNORE)
        if self.task == "seq2seq":
            half = ids.shape[1] // 2
            return (ids[:, :half], ids[:, half:]), labels[:, half:]
        if self.task == "classification":
            return (ids,), self._groups(ids)
        return (ids,), labels

    def _groups(self, ids: Tensor) -> Tensor:
        """Which group of tokens (id modulo classes) each text has most of, compared with all texts: (B,)."""
        seen = torch.stack([(ids % self.classes == k).double().mean(1) for k in range(self.classes)], 1)
        usual = torch.stack([self._shares[k :: self.classes].sum() for k in range(self.classes)])
        return (seen - usual).argmax(1)

    def on_device(self, example: Example) -> Example:
        """The same example where the model is."""
        inputs, labels = example
        return tuple(part.to(self.device) for part in inputs), labels.to(self.device)


def gradient(model: nn.Module, example: Example) -> float:
    """Loss of one example in nats per guess; adds the gradient, an auxiliary loss included.

    Raises CannotLearn when the loss depends on no trainable parameter.
    """
    inputs, labels = example
    total, count = token_loss(model(*inputs), labels)
    loss = total / count
    whole = with_extra(model, loss)
    if not whole.requires_grad:
        raise CannotLearn("the loss depends on no trainable parameter")
    whole.backward()
    make_dense(model)
    return loss.item()


def train(
    model: nn.Module,
    lesson: Lesson,
    config: TrainConfig,
    *,
    seconds: float = math.inf,
    steps: int = 0,
    rate: Callable[[int], float] | None = None,
    example: Example | None = None,
    stop: Callable[[list[float]], bool] = lambda losses: False,
) -> Course:
    """Train in place until time, steps or `stop` (given the losses so far) end it, or a loss is not finite.

    `Trainer` does not fit here: it counts steps, not seconds, calls models with one input and keeps a run
    folder. Loss, batches and schedule are the same as there; every model is moved by AdamW, whatever it would choose
    itself, so that models compare, and because the checks' thresholds were found with it.

    Args:
        config: learning rate and its schedule, weight decay, betas, clipping; the rest is not read.
        seconds, steps: limits; 0 steps means no limit.
        rate: learning rate of step n (from 0); None follows config's schedule, stretched over the limits.
        example: train on this one again and again, instead of lesson.train(0), lesson.train(1), ...
    """
    model.train()
    optimizer = build_optimizer(model, config.model_copy(update={"optimizer": "adamw"}))
    course, began = Course(), time.perf_counter()
    params = [param for param in model.parameters() if param.requires_grad]
    repeated = lesson.on_device(example) if example else None
    while not (steps and course.steps >= steps):
        step, now = course.steps, time.perf_counter() - began
        if step and now >= seconds:
            break
        done = max(now / seconds, step / steps if steps else 0.0)
        chosen = rate(step) if rate else learning_rate(int(done * TICKS), config, TICKS)
        for group in optimizer.param_groups:
            group["lr"] = chosen
        torch.manual_seed(derive_seed(lesson.seed, "dropout", step))
        loss = gradient(model, repeated or lesson.on_device(lesson.train(step)))
        course.losses.append(loss)
        course.clock.append(time.perf_counter() - began)
        norm = nn.utils.clip_grad_norm_(params, config.grad_clip or math.inf)
        course.diverged = not (math.isfinite(loss) and math.isfinite(norm.item()))
        if course.diverged or stop(course.losses):
            break
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    optimizer.zero_grad(set_to_none=True)
    return course


def validation_loss(model: nn.Module, lesson: Lesson) -> tuple[float, int]:
    """Mean loss over the whole validation text in evaluation mode, in nats, and how many guesses it was.

    Without inference mode, unlike `evaluate`: a model that keeps a table from its forward pass must be able
    to train with it later.
    """
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for i in range(len(lesson)):
            inputs, labels = lesson.on_device(lesson.val(i))
            part, counted = token_loss(model(*inputs), labels)
            total, count = total + part.item(), count + int(counted)
    return total / count, count


def line(name: str, x: list[float], y: list[float]) -> dict:
    """One series of a figure: its finite points, thinned to POINTS; the last is always kept."""
    points = [(float(a), float(b)) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    kept = points[:: max(1, -(-len(points) // POINTS))]
    kept += points[-1:] if points[-1:] != kept[-1:] else []
    return {"name": name, "x": [a for a, _ in kept], "y": [b for _, b in kept]}
