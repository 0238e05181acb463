"""The learning rate as a pure function of the step: no object, so nothing to save or restore."""

import math
from bisect import bisect_left
from functools import cache
from itertools import accumulate

from utils.config.schema import TrainConfig

FIRST_SHARE = 1 / 8  # of the examples of a step, at which a batch warmup begins


def learning_rate(step: int, config: TrainConfig, total_steps: int) -> float:
    """The rate used by optimizer step `step` (0 = the first) of `total_steps`.

    Rises linearly over config.warmup_steps to config.learning_rate, then follows config.schedule; cosine
    (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983), linear and wsd reach config.min_lr at the last step.
    wsd (Hu et al. 2024, MiniCPM, https://arxiv.org/abs/2404.06395, section 4) stays at the peak and falls linearly over
    the last config.decay_share of the run.
    """
    peak, end = config.learning_rate, config.min_lr
    warmup = min(config.warmup_steps, total_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    start = warmup
    if config.schedule == "constant":
        return peak
    if config.schedule == "wsd":
        start = max(warmup, round(total_steps * (1 - config.decay_share)))
        if step < start:
            return peak
    done = min(1.0, (step - start) / max(1, total_steps - 1 - start))
    if config.schedule == "cosine":
        return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * done))
    return peak + (end - peak) * done


def examples_before(step: int, config: TrainConfig) -> int:
    """How many examples a run has learned from before optimizer step `step` (0 = the first).

    Over config.batch_warmup_steps the examples of a step rise linearly from an eighth (at least 1) to
    config.batch_size x config.grad_accum_steps. A function of the step alone, so a resumed run reads on where it was.
    """
    rising = _rising(config)
    return rising[min(step, len(rising) - 1)] + _whole(config) * max(0, step - len(rising) + 1)


def examples_in(step: int, config: TrainConfig) -> int:
    """How many examples optimizer step `step` learns from."""
    return examples_before(step + 1, config) - examples_before(step, config)


def total_steps(config: TrainConfig, examples_per_epoch: float) -> int:
    """Length of a run: config.max_steps, or the fewest steps that read config.epochs; at least 1."""
    if config.max_steps:
        return config.max_steps
    wanted, rising = config.epochs * examples_per_epoch, _rising(config)
    if wanted <= rising[-1]:
        return max(1, bisect_left(rising, wanted))
    return len(rising) - 1 + math.ceil((wanted - rising[-1]) / _whole(config))


def _whole(config: TrainConfig) -> int:
    return config.batch_size * config.grad_accum_steps


def _rising(config: TrainConfig) -> tuple[int, ...]:
    return _sums(_whole(config), config.batch_warmup_steps)


@cache
def _sums(whole: int, ramp: int) -> tuple[int, ...]:
    """Examples before each step of the warmup and before the first whole one: ramp + 1 numbers."""
    sizes = (max(1, round(whole * (FIRST_SHARE + (1 - FIRST_SHARE) * step / ramp))) for step in range(ramp))
    return tuple(accumulate(sizes, initial=0))
