"""What a contender is asked to do, and the watch that times it; knows no trainer."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.runtime.device import peak_memory

from .shapes import Entry, Shape

WARM_STEPS = 3  # at least so many are not counted: memory is laid out, kernels are chosen, graphs compiled
WARM_SHARE = 0.1  # and they last, the first one left out, at least this share of the measurement


class Listener(Protocol):
    """Who is told how a training goes on."""

    def started(self) -> None:
        """Model, optimizer and data are ready; the first batch is not made yet."""

    def stepped(self) -> bool:
        """One more optimizer step is done: whether that is enough."""


@dataclass
class Watch:
    """The listener that times optimizer steps."""

    seconds: float
    device: str
    steps: list[float] = field(default_factory=list)  # seconds of each, warm-up left out
    warm_up: float = 0.0  # seconds from `started` to the end of the warm-up
    ticks: int = 0  # steps done, those of the warm-up too
    memory: dict[str, int] = field(default_factory=dict)  # most bytes up to the last step: of the process, of the card
    clock: Callable[[], float] = time.perf_counter  # seconds

    def started(self) -> None:
        """The clock runs."""
        self._start = self._last = self.clock()
        self._warm = False

    def stepped(self) -> bool:
        """One more optimizer step is done: whether that is enough.

        A GPU is waited for at the end of the warm-up and of the measurement only, as a wait at every step would be the
        benchmark's cost and not the trainer's: there a single step's seconds are those of its launch.
        """
        self.ticks += 1
        now = self.clock()
        if not self._warm:
            if self.ticks == 1:
                self._last = now
            elif self.ticks >= WARM_STEPS and now - self._last >= WARM_SHARE * self.seconds:
                self._wait()
                self._warm, self._last = True, self.clock()
                self._begin, self.warm_up = self._last, self._last - self._start
            return False
        done = now - self._begin >= self.seconds
        if done:
            self._wait()
            now = self.clock()
            self._weigh()
        self.steps.append(now - self._last)
        self._last = now
        return done

    def _weigh(self) -> None:
        self.memory["peak_rss"] = peak_memory(torch.device("cpu"))
        if self.device == "cuda":
            self.memory["peak_cuda"] = peak_memory(torch.device("cuda"))

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Job:
    """One measurement."""

    shape: Shape
    entry: Entry
    text: Path  # UTF-8; its first 90 % train
    ids: Path  # those 90 % as uint16 character ids, in the form nanoGPT reads
    device: str  # cpu or cuda
    threads: int
    nanogpt: Path | None
    settings: list[str]  # key=value words for ours
    folder: Path  # of this measurement alone, empty
    watch: Watch


@dataclass(frozen=True)
class Outcome:
    """What a contender says of itself beside the times."""

    precision: str  # of the matrix products: fp32, bf16 or fp16
    parameters: int  # trained, all of them
    note: str = ""
    compiled: bool = False


class Blocks(Dataset[dict[str, Tensor]]):
    """The training text in blocks of `block_size` tokens, as transformers' language modelling examples cut it.

    Each is {"input_ids", "labels"}, both (T,) int64 and equal: the model shifts its labels itself.
    """

    def __init__(self, ids: np.ndarray, block_size: int) -> None:
        self.rows = torch.from_numpy(ids[: len(ids) // block_size * block_size].astype(np.int64)).view(-1, block_size)

    @classmethod
    def of(cls, job: Job) -> "Blocks":
        """Those of a job."""
        return cls(np.fromfile(job.ids, np.uint16), job.shape.block_size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def count(model: torch.nn.Module) -> int:
    """Trained parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
