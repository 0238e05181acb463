"""How good is a model on text it has not learned? Disturbs nothing: no random draw, no gradient, same mode after."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.data.batching.tasks import Batch
from utils.training.loss import IGNORE, perplexity
from utils.training.memory import is_out_of_memory, release

CHUNK = 1 << 24  # logits that are looked at at once: a few of their size are made on the way
MOST_CLASSES = 50  # of which a table says which was taken for which


def what_it_takes(model: nn.Module) -> dict[str, Any]:
    """What `build_batches` and `eval_on` have to know of a model: what it can be told of its rows, where it starts."""
    return {
        "packs_documents": getattr(model, "packs_documents", False),
        "supports_attention_mask": getattr(model, "supports_attention_mask", False),
        "start_id": getattr(model, "start_id", None),
        "n_classes": getattr(model, "n_classes", 0),
    }


@dataclass(frozen=True)
class Evaluation:
    """Means over every counted label: a token, or a text's class."""

    loss: float  # nats per label
    accuracy: float  # share of labels that were the model's first guess
    tokens: int  # how many labels
    top5: float | None = None  # share of labels among its first five guesses; None where there are no more than five
    macro_f1: float | None = None  # of texts: mean over the classes that occur of 2 right / (texts + guesses)
    confusion: tuple[tuple[int, ...], ...] = ()  # how often a text of class [i] was taken for one of [j]; () of many

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """The loss in bits per UTF-8 byte, comparable between tokenizers."""
        return self.loss / math.log(2) / bytes_per_token

    def metrics(self, bytes_per_token: float | None) -> dict[str, float | None]:
        """A row of the run's metrics; bits per byte only where the bytes are known."""
        row = {
            "val/loss": self.loss,
            "val/perplexity": perplexity(self.loss),
            "val/accuracy": self.accuracy,
            "val/top5": self.top5,
            "val/bits_per_byte": self.bits_per_byte(bytes_per_token) if bytes_per_token else None,
        }
        return row if self.macro_f1 is None else row | {"val/macro_f1": self.macro_f1}


class Examples(Protocol):
    """Batches of at most `batch_size` examples: what is evaluated."""

    batch_size: int

    def __len__(self) -> int: ...

    def batch(self, k: int, /) -> Batch: ...


def evaluate(
    model: nn.Module,
    batches: Examples,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    stop: Callable[[], object] = lambda: None,
) -> Evaluation | None:
    """How well `model` guesses all of `batches`, in one pass; None when `stop()` became true on the way.

    The numbers are added up where the model is and fetched once, and of a model that says what its output layer reads
    (`hidden`, `head`) only some logits exist at a time. Where memory runs out, fewer examples at once do it, too; what
    fills up their rows stays as it was. Raises ValueError where there is nothing to predict.
    """
    training, tally = model.training, _Tally(device)
    model.eval()
    at_once = batches.batch_size
    try:
        for i in range(len(batches)):
            if stop():
                return None
            batch, done = batches.batch(i), 0
            while done < len(batch.labels):
                before = tally.copy()
                try:
                    # Not inference_mode: what a model keeps of its forward pass (a table of places, a mask) would be
                    # of no use to a backward pass later.
                    with torch.no_grad(), autocast():
                        _count(model, _part(batch, done, done + at_once), device, tally)
                    done += at_once
                    continue
                except Exception as error:
                    if at_once == 1 or not is_out_of_memory(error):
                        raise
                tally, at_once = before, -(-min(at_once, len(batch.labels)) // 2)
                release(device)
    finally:
        model.train(training)
    return tally.result()


def _part(batch: Batch, first: int, end: int) -> Batch:
    """Some examples of a batch."""
    extra = {name: value[first:end] for name, value in batch.extra.items()}
    return Batch(tuple(ids[first:end] for ids in batch.inputs), batch.labels[first:end], extra)


def _count(model: nn.Module, batch: Batch, device: torch.device, tally: "_Tally") -> None:
    labels = batch.labels.to(device, non_blocking=True)
    says: Any = model
    head: Any = None
    if hasattr(says, "hidden") and hasattr(says, "head"):
        inputs, extra = inputs_of(batch, device)
        read, head = says.hidden(*inputs, **extra), says.head  # (B, T, C)
        rows = max(1, CHUNK // len(head.weight))
    else:
        read = logits_of(model, batch, device)  # (B, T, V), or (B, K)
        rows = max(1, CHUNK // read.shape[-1])
    for said, wanted in zip(torch.split(read.flatten(0, -2), rows), torch.split(labels.flatten(), rows), strict=True):
        tally.add(said if head is None else head(said), wanted, labels.dim() == 1)


class _Tally:
    """Sums over labels, on the device."""

    def __init__(self, device: torch.device) -> None:
        self._where = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        # In float64: counts are exact, and losses do not depend on how the labels are divided into batches.
        self._sums = torch.zeros(4, dtype=torch.float64, device=self._where)  # loss, first guess, first five, labels
        self._classes: Tensor | None = None  # (3, K): texts, guesses, and guesses that were right
        self._confusion: Tensor | None = None  # (K, K)
        self._outputs = 0

    def add(self, logits: Tensor, labels: Tensor, is_class: bool) -> None:
        """Count in logits (N, V) and their labels (N,)."""
        counted, self._outputs = labels != IGNORE, logits.shape[-1]
        losses = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")  # (N,)
        at = labels.clamp(min=0)[:, None]
        sound = counted & ~logits.gather(-1, at)[:, 0].isnan()  # what is no number is no good guess
        guess = logits.argmax(-1)  # of equal logits the first
        first = sound & (guess == at[:, 0])  # (N,)
        near = first | (sound & (logits.topk(min(5, self._outputs)).indices == at).any(-1))  # (N,)
        counts = torch.stack([first, near, counted]).sum(-1)  # (3,)
        self._sums[0] += losses.to(self._where).sum(dtype=torch.float64)
        self._sums[1:] += counts.to(self._where)
        if is_class:
            self._add_classes(at[counted, 0], guess[counted])

    def _add_classes(self, labels: Tensor, guess: Tensor) -> None:
        n, wanted = self._outputs, (labels, guess, labels[labels == guess])  # (N,) each, and fewer
        classes = torch.stack([torch.bincount(each, minlength=n) for each in wanted])
        self._classes = classes if self._classes is None else self._classes + classes
        if n <= MOST_CLASSES:
            table = torch.bincount(labels * n + guess, minlength=n * n).view(n, n)
            self._confusion = table if self._confusion is None else self._confusion + table

    def copy(self) -> "_Tally":
        """The sums of this moment."""
        other = _Tally(self._where)
        other._sums, other._outputs = self._sums.clone(), self._outputs
        other._classes, other._confusion = self._classes, self._confusion  # which no sum is added to in place
        return other

    def result(self) -> Evaluation:
        """Raises ValueError where no label was counted."""
        loss, right, near, labels = self._sums.tolist()
        if not labels:
            raise ValueError("there is nothing to predict in the text for evaluation: no token of it counts")
        confusion = () if self._confusion is None else tuple(map(tuple, self._confusion.tolist()))
        top5 = near / labels if self._outputs > 5 else None
        return Evaluation(loss / labels, right / labels, int(labels), top5, self._macro_f1(), confusion)

    def _macro_f1(self) -> float | None:
        if self._classes is None:
            return None
        seen = [(right, texts + guesses) for texts, guesses, right in self._classes.T.tolist() if texts + guesses]
        return float(sum(2 * right / both for right, both in seen) / len(seen))


def logits_of(model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    """What the model says to a batch, wherever the batch is: (B, T, V), or (B, K) of classes."""
    inputs, extra = inputs_of(batch, device)
    said: Tensor = model(*inputs, **extra)
    return said


def inputs_of(batch: Batch, device: torch.device) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What a model is called with, on its device: `model(*inputs, **extra)`."""
    inputs = [ids.to(device, non_blocking=True) for ids in batch.inputs]
    return inputs, {name: value.to(device, non_blocking=True) for name, value in batch.extra.items()}


def count_tokens(batch: Batch) -> int:
    """How many tokens a model reads in a batch; what only fills up rows is left out where the batch says so."""
    first, *others = batch.inputs
    real = batch.extra.get("documents", batch.extra.get("attention_mask"))
    return sum(ids.numel() for ids in others) + (first.numel() if real is None else int(real.count_nonzero()))
