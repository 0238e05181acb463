"""How many examples fit into memory at once: what train.batch_size=auto means on this machine, for this model."""

import os
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from utils.config.schema import TrainConfig
from utils.data.batching.tasks import Batch, TaskBatches
from utils.training.memory import GB, free_bytes, is_out_of_memory, release
from utils.training.step import Stepper

MOST = 1024  # examples: larger batches seldom teach more for what they cost
SMALL = (2, 4)  # examples of the two rehearsals from which memory is foretold
SHARE = 0.8  # of the memory that is free which may be planned with: others want some, and libraries take theirs
ROOM = 0.1  # of a GPU that has to stay free in the largest rehearsal: it fragments
STATE = 8  # bytes an optimizer keeps per weight, at most: two numbers in fp32
COPY = 4  # bytes of a weight, its gradient, or its average


class Fit(NamedTuple):
    """A batch size and why it is that."""

    batch_size: int
    words: str


def fitting_batch_size(
    model: nn.Module, config: TrainConfig, train: TaskBatches, device: torch.device, precision: str
) -> Fit:
    """The largest power of two of the longest examples that can be trained on at once; at most an epoch, and 1,024.

    Does real forward and backward passes and takes no step: weights and buffers are afterwards what they were. A GPU
    is tried until it is full. A CPU's memory is never filled, as the machine would swap before it refuses: what
    `batch_size` examples take is foretold from two small rehearsals (see `Growth`). `train` may have any batch size.
    """
    most = 1 << (max(1, min(MOST, train.examples_per_epoch)).bit_length() - 1)
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    stepper = Stepper(model, config, train, device, precision, ahead=False)
    stepper.working.train()
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    try:
        found = (_foretold if device.type == "cpu" else _tried)(stepper, train, most, weights)
    finally:
        stepper.forget()
        model.train(was_training)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                was = kept.get(name)
                if was is not None and was.shape == buffer.shape:  # else it was made just now, or has grown
                    buffer.copy_(was)
    return found


def longest(train: TaskBatches, rows: int) -> Batch:
    """`rows` times the longest example there is."""
    cut = train.source.cut
    filled = getattr(cut, "filled", None)  # running text has rows of one length
    item = 0 if filled is None else int(np.argmax(filled))
    spans = cut.spans(np.full(rows, item), np.zeros(rows, dtype=np.int64))
    return train.question.batch(cut.ids, spans, np.arange(rows))


class Growth(NamedTuple):
    """Bytes allocated at each moment of a rehearsal, as a line in the number of examples."""

    fixed: np.ndarray  # (M,)
    each: np.ndarray  # (M,)

    def peak(self, rows: int) -> int:
        """The most that is allocated at any moment with so many examples."""
        return int((self.fixed + rows * self.each).max())


def growth(stepper: Stepper, train: TaskBatches) -> Growth:
    """How the memory of a step grows, from two rehearsals.

    The peak itself is no line: with few examples it lies at the end, where all gradients are there, with many at the
    turn from forward to backward. But each allocation is the same one in both, and linear. Where the two do not
    allocate alike, nothing is taken to be given back before the end: more than is true, and safe.
    """
    few, more = SMALL
    stepper.rehearse(longest(train, few))  # what is made once (caches, the gradients themselves) is made now
    a, b = _allocations(stepper, longest(train, few)), _allocations(stepper, longest(train, more))
    if len(a) == len(b):
        levels = np.cumsum(a), np.cumsum(b)
    else:
        levels = tuple(np.array([side[side > 0].sum()]) for side in (a, b))  # type: ignore[assignment]
    each = np.maximum(0, (levels[1] - levels[0]) / (more - few))
    return Growth(levels[0] - few * each, each)


def _allocations(stepper: Stepper, batch: Batch) -> np.ndarray:
    """Bytes that torch takes (above 0) and gives back (below 0) in a rehearsal, in order."""
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it writes two lines into the log, whatever is logged else
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        stepper.rehearse(batch)
    results: Any = told.profiler.kineto_results if told.profiler else None  # type: ignore[union-attr]
    events = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"] if results else []
    return np.array([size for _, size in sorted(events, key=lambda event: event[0])], dtype=np.int64)


def _foretold(stepper: Stepper, train: TaskBatches, most: int, weights: int) -> Fit:
    try:
        grown = growth(stepper, train)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        grown = None
    stepper.forget()
    free = free_bytes()
    if grown is None or free is None:
        size = 1 if grown is None else min(most, TrainConfig().batch_size)
        why = f"{SMALL[1]} at once are too many" if grown is None else "nobody says how much memory is free here"
        return Fit(size, f"train.batch_size=auto is {size}: {why}")
    kept = _kept(stepper.config, weights) + COPY * weights  # and the gradient, which has not been made here
    budget = SHARE * free - kept
    size = most
    while size > 1 and grown.peak(size) > budget:
        size //= 2
    # The statistics' copy of the weights comes when the activations have gone.
    needs = (max(grown.peak(size), COPY * weights if stepper.config.stats_every else 0) + kept) / GB
    limit = "as many as there are, or as are of use" if size == most else f"{2 * size} would be too many"
    return Fit(
        size, f"train.batch_size=auto is {size}: it needs {needs:.2f} GB of the {free / GB:.2f} GB free; {limit}"
    )


def _kept(config: TrainConfig, weights: int) -> int:
    """Bytes that stay taken throughout training beside weights and gradients: optimizer state, and the average."""
    return (STATE + (COPY if config.ema_decay else 0)) * weights


def _tried(stepper: Stepper, train: TaskBatches, most: int, weights: int) -> Fit:
    size, fits, device = 1, 0, stepper.device
    room: list[torch.Tensor] = []
    try:
        room.append(torch.empty(_kept(stepper.config, weights), dtype=torch.uint8, device=device))
        if device.type == "cuda":
            spare = int(ROOM * torch.cuda.get_device_properties(device).total_memory)
            room.append(torch.empty(spare, dtype=torch.uint8, device=device))
        while size <= most and _fits(stepper, train, size):
            size, fits = 2 * size, size
    except Exception as error:  # not even what the optimizer keeps fits: training will say so
        if not is_out_of_memory(error):
            raise
    finally:
        room.clear()
        release(device)
    limit = "as many as there are, or as are of use" if fits == most else f"{2 * max(1, fits)} do not fit"
    return Fit(max(1, fits), f"train.batch_size=auto is {max(1, fits)}: {limit}")


def _fits(stepper: Stepper, train: TaskBatches, rows: int) -> bool:
    try:
        for _ in range(2):  # the second one beside the gradients of the first, as with accumulation
            stepper.rehearse(longest(train, rows))
        return True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        stepper.forget()
