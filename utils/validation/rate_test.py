"""Which learning rate? Raise it step by step from harmless to absurd and watch the loss; knows no checks."""

import math
from dataclasses import dataclass

from torch import nn

from utils.config.schema import TrainConfig
from utils.validation.short_training import CannotTell, Lesson, train

LOWEST, HIGHEST = 1e-5, 10.0  # AdamW on any model lies well between
STEPS, FEWEST = 100, 30
MEMORY = 0.7  # of the running mean; more would lag behind by half a decade
DIVERGED = 4.0  # times the least smoothed loss
WINDOW = 1.0  # decades over which the fall is measured: shorter ones find noise


@dataclass(frozen=True)
class RateTest:
    """Losses (nats, raw and smoothed) at growing rates, and what follows from them."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None  # None: the loss did not fall anywhere
    diverged_at: float | None  # None: still learning at the highest rate tried
    whole: bool  # whether it came to the end or diverged; else the time was up, on a busy machine


def range_test(model: nn.Module, lesson: Lesson, seconds: float = math.inf, steps: int = 0) -> RateTest:
    """The learning-rate range test of Smith 2017 (https://arxiv.org/abs/1506.01186), with AdamW; trains in place.

    The rate grows exponentially, one batch per rate, until the loss is four times its least or not finite. The
    suggestion is the middle of the decade over which the smoothed loss falls most: where learning is fastest.

    Args:
        seconds: limit; it also decides how finely the rates are spaced, unless `steps` does.

    Raises:
        CannotTell: not even 30 steps fit into the time.
    """
    steps = steps or int(min(STEPS, 0.8 * seconds / lesson.step_seconds))
    if steps < FEWEST:
        raise CannotTell(f"{FEWEST} steps of {lesson.step_seconds:.2f} s do not fit into {seconds:g} s")
    growth = (HIGHEST / LOWEST) ** (1 / (steps - 1))
    smooth, mean, broke = [], 0.0, False

    def too_far(losses: list[float]) -> bool:
        nonlocal mean, broke
        mean = MEMORY * mean + (1 - MEMORY) * losses[-1]
        smooth.append(mean / (1 - MEMORY ** len(losses)))  # without the zero it began with
        broke = smooth[-1] > DIVERGED * min(smooth)
        return broke

    course = train(
        model, lesson, TrainConfig(weight_decay=0.0), seconds=seconds, steps=steps,
        rate=lambda step: LOWEST * growth**step, stop=too_far,
    )  # fmt: skip
    rates = [LOWEST * growth**step for step in range(len(smooth))]
    at = LOWEST * growth ** (course.steps - 1) if broke or course.diverged else None
    return RateTest(
        rates,
        course.losses[: len(smooth)],
        smooth,
        _steepest(rates, smooth, growth),
        at,
        bool(at) or course.steps >= steps,
    )


def _steepest(rates: list[float], smooth: list[float], growth: float) -> float | None:
    width = max(1, round(WINDOW * math.log(10) / math.log(growth)))
    lowest = min(range(len(smooth)), key=smooth.__getitem__, default=0)
    if lowest < width:
        return None
    start = max(range(lowest - width + 1), key=lambda i: smooth[i] - smooth[i + width])
    if smooth[start] - smooth[start + width] < 0.01 * smooth[0]:
        return None
    return math.sqrt(rates[start] * rates[start + width])
