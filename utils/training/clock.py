"""Where the seconds of a run go, how fast it is, and when it will be done."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from utils.runs.progress import PARTS

MOST_MARKS = 4096  # that may wait on a GPU before somebody looks


def times_left(step: int, total: int, every: int) -> int:
    """How often something is still done that is due every `every` steps (0: never), and at step `total` anyway."""
    if step >= total or not every:
        return int(step < total)
    return -(-total // every) - step // every


class Clock:
    """Seconds per part of a run, tokens per second, model FLOPs utilisation, time left; begins when it is made.

    On a GPU the parts of a step are timed on the device, by events that are read when they are over: nobody waits for
    them. `flops` is what a token costs to learn, `peak` the device's FLOP/s; without them there is no utilisation.
    """

    def __init__(self, flops: float = 0.0, peak: float = 0.0, device: torch.device | None = None) -> None:
        self._flops, self._peak = flops, peak
        self._mark: Callable[[], Any] = time.monotonic
        self._on_gpu = device is not None and device.type == "cuda"
        if self._on_gpu:
            self._mark = _event
        self._marks: list[tuple[str, Any]] = [("other", self._mark())]  # what began when
        self._since_row: dict[str, float] = defaultdict(float)
        self._total: dict[str, float] = defaultdict(float)
        # For what is to come: wall clock of the processor, which has waited for the GPU wherever it looks at numbers.
        self._part, self._entered = "other", time.monotonic()
        self._visits: dict[str, int] = defaultdict(int)
        self._wall: dict[str, float] = defaultdict(float)
        self._span_began: float | None = None  # of steps whose numbers nobody has looked at yet
        self._span_steps, self._span_tokens, self._spans = 0, 0, 0
        self._other_before = 0.0
        self._steps = 0
        self._mean = (0.0, 0.0)  # running means of seconds and of tokens in one step

    def enter(self, part: str) -> None:
        """From now on time belongs to `part`, one of PARTS."""
        now = time.monotonic()
        self._wall[self._part] += now - self._entered
        self._visits[part] += 1
        self._part, self._entered = part, now
        self._marks.append((part, self._mark()))
        if not self._on_gpu or len(self._marks) > MOST_MARKS:
            self._fold()

    def start_step(self) -> None:
        """Call before a step."""
        self.enter("data")
        if self._span_began is None:
            self._span_began, self._other_before = self._entered, self._wall["other"]

    def end_step(self, tokens: int) -> None:
        """Call after it, with how many it has read."""
        self.enter("other")
        self._span_steps, self._span_tokens = self._span_steps + 1, self._span_tokens + tokens
        self._steps += 1

    def looked(self) -> None:
        """Call when the last steps' numbers have been read, so that they are over on a GPU, too."""
        if self._span_began is None or not self._span_steps:
            return
        n, end = self._span_steps, time.monotonic()
        now = (end - self._span_began) / n, self._span_tokens / n
        # The first steps load libraries and compile: they say nothing of those to come.
        keep = 0.9**n if self._spans > 1 else 0.0
        self._mean = keep * self._mean[0] + (1 - keep) * now[0], keep * self._mean[1] + (1 - keep) * now[1]
        # Waiting for a GPU to finish the steps was part of them.
        self._wall["other"], self._entered = self._other_before, end
        self._span_began, self._span_steps, self._span_tokens = None, 0, 0
        self._spans += 1

    def row(self) -> dict[str, float]:
        """What of this goes into a row of training metrics: tokens_per_second, mfu if known, time/PART in seconds."""
        used = self.mfu()
        return {
            "tokens_per_second": self.tokens_per_second(),
            **({} if used is None else {"mfu": round(used, 4)}),
            **{f"time/{part}": round(seconds, 6) for part, seconds in self.split().items()},
        }

    def split(self) -> dict[str, float]:
        """Seconds spent in each of PARTS since the last call; on a GPU without what it has not finished."""
        self._touch()
        spent, self._since_row = self._since_row, defaultdict(float)
        return {part: spent[part] for part in PARTS}

    def shares(self) -> dict[str, float]:
        """Share of the time since the clock was made that each of PARTS took; empty before there is any."""
        self._touch()
        whole = sum(self._total.values())
        return {part: self._total[part] / whole for part in PARTS} if whole else {}

    def tokens_per_second(self) -> float:
        """While training, without what goes on between the steps."""
        return self._mean[1] / max(self._mean[0], 1e-9)

    def mfu(self) -> float | None:
        """Model FLOPs utilisation: the share of the device's peak that training makes use of; None if not known."""
        if not self._flops or not self._peak or not self._spans:
            return None
        return self._flops * self.tokens_per_second() / self._peak

    def seconds_left(self, steps: float, visits: Mapping[str, int]) -> float | None:
        """Until `steps` more steps are done, and `visits` to the parts between them (evaluation, saving).

        A part that was not seen yet counts as nothing. None before the first step.
        """
        if not self._spans:
            return None
        now = time.monotonic()
        wall = {part: self._wall[part] + (now - self._entered) * (part == self._part) for part in PARTS}
        between = sum(left * wall[part] / max(1, self._visits[part]) for part, left in visits.items())
        return steps * (self._mean[0] + wall["other"] / self._steps) + between

    def _touch(self) -> None:
        """Take what was spent in the part of now into account."""
        self._marks.append((self._marks[-1][0], self._mark()))
        self._fold()

    def _fold(self) -> None:
        """Add up the marks that are over."""
        done = 0
        for (part, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if self._on_gpu:
                if not end.query():
                    break
                seconds = begin.elapsed_time(end) / 1000
            else:
                seconds = end - begin
            self._since_row[part] += seconds
            self._total[part] += seconds
            done += 1
        del self._marks[:done]


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
