"""The learning rate as a pure function of the step: no object, so nothing to save or restore."""

import math

from utils.config.schema import TrainConfig

DECAY_SHARE = 0.2  # of the run, at its end, in which wsd falls (Hagele et al. 2024, section 3)


def learning_rate(step: int, config: TrainConfig, total_steps: int) -> float:
    """The rate used by optimizer step `step` (0 = the first) of `total_steps`.

    Rises linearly over config.warmup_steps to config.learning_rate, then follows config.schedule; cosine
    (Loshchilov and Hutter 2017), linear and wsd (Hu et al. 2024, MiniCPM) reach config.min_lr at the last step.
    """
    peak, end = config.learning_rate, config.min_lr
    warmup = min(config.warmup_steps, total_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    start = warmup
    if config.schedule == "constant":
        return peak
    if config.schedule == "wsd":
        start = max(warmup, round(total_steps * (1 - DECAY_SHARE)))
        if step < start:
            return peak
    done = min(1.0, (step - start) / max(1, total_steps - 1 - start))
    if config.schedule == "cosine":
        return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * done))
    return peak + (end - peak) * done
