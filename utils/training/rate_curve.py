"""What a learning-rate range test found, and which rate follows from it. No torch."""

import math
from dataclasses import dataclass
from typing import Any

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100  # of a test, where nothing else is said
FEWEST_STEPS, MOST_STEPS = 10, 10_000
REACH = 0.6  # decades of the rate that the running mean of the loss looks back: ten steps of a usual test
MOST_SMOOTHING = 0.99  # share of the running mean in the next one
DIVERGED = 1.5  # times the least smoothed loss: from here on nothing is learned any more
LEAST_GAIN = 0.001  # share of the first loss by which it has to fall, or nothing was learned
LINES, BAR = 26, 40  # of the table, and characters of its longest bar
RULE = "the smaller of where the loss falls fastest and a tenth of where it is least"
SAFETY = 10.0  # the rate suggested is at least this far below that of the least loss


@dataclass(frozen=True)
class RateCurve:
    """The loss at each rate, in the order of the steps; a test stops where the loss grows beyond all bounds."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]  # nats per label, before the step with that rate
    stopped: bool = False  # before the highest rate

    @property
    def smoothed(self) -> list[float]:
        """Running mean of the losses, free of its start at 0 (as Adam's means are)."""
        per_step = math.log10(self.rates[1] / self.rates[0]) if len(self.rates) > 1 else REACH
        share = min(max(0.0, 1 - per_step / REACH), MOST_SMOOTHING)
        mean, means = 0.0, []
        for i, loss in enumerate(self.losses, start=1):
            mean = share * mean + (1 - share) * loss
            means.append(mean / (1 - share**i))
        return means

    @property
    def has_diverged(self) -> bool:
        """Whether a test is over: the last loss is not finite, or the smoothed one far above its least."""
        if not math.isfinite(self.losses[-1]):
            return True
        smoothed = self.smoothed
        return smoothed[-1] > DIVERGED * min(smoothed)

    @property
    def lowest(self) -> float:
        """The rate at which the smoothed loss was least."""
        smoothed = self.smoothed
        return self.rates[smoothed.index(min(smoothed))]

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss fell fastest, for each factor by which the rate rose."""
        smoothed = self.smoothed
        falls = [smoothed[i - 1] - smoothed[i + 1] for i in range(1, len(smoothed) - 1)]
        return self.rates[1 + falls.index(max(falls))]

    @property
    def suggestion(self) -> float | None:
        """The smaller of `steepest` and a tenth of `lowest`, in two digits; None where no rate made the loss smaller.

        The loss is least just before training breaks down, and a rate held for a whole run has to stay clear of that;
        where it does not break down but only learns no more, `lowest` says little, and the steepest fall is earlier.
        """
        smoothed = self.smoothed
        if len(smoothed) < 3 or min(smoothed) > (1 - LEAST_GAIN) * smoothed[0]:
            return None
        return float(f"{min(self.steepest, self.lowest / SAFETY):.1e}")

    def __str__(self) -> str:
        """The curve as a table, and what follows from it."""
        smoothed, n = self.smoothed, len(self.rates)
        shown = {round(i * (n - 1) / (LINES - 1)) for i in range(LINES)} | {smoothed.index(min(smoothed))}
        low, high = min(smoothed), max(smoothed)
        rows = ["learning rate    loss  smoothed"]
        for i in sorted(shown):
            bar = "#" * (1 + round((smoothed[i] - low) / ((high - low) or 1) * (BAR - 1)))
            mark = "  <- least" if self.rates[i] == self.lowest else ""
            rows.append(f"{self.rates[i]:13.2e}{self.losses[i]:8.3f}{smoothed[i]:10.3f}  {bar}{mark}")
        if self.stopped:
            rows.append("the loss broke down: higher rates were not tried")
        if self.suggestion is None:
            return "\n".join([*rows, "no suggestion: no rate made the loss smaller. Try more steps, or `tbt validate`"])
        return "\n".join([*rows, f"suggestion: train.learning_rate={self.suggestion:g} ({RULE})"])

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        rows = zip(self.rates, self.losses, self.smoothed, strict=True)
        return {
            "suggestion": self.suggestion,
            "rule": RULE,
            "lowest": self.lowest,
            "steepest": self.steepest if len(self.rates) > 2 else None,
            "stopped": self.stopped,
            "steps": [{"learning_rate": rate, "loss": loss, "smoothed": mean} for rate, loss, mean in rows],
        }


def rising_rates(steps: int = STEPS, low: float = LOWEST, high: float = HIGHEST) -> list[float]:
    """`steps` rates from `low` to `high`, each the same factor above the last. Raises ValueError for no range."""
    if not FEWEST_STEPS <= steps <= MOST_STEPS:
        raise ValueError(f"{steps} steps: a range test takes {FEWEST_STEPS} to {MOST_STEPS:,}; {STEPS} is usual")
    if not 0.0 < low < high <= 1e6:
        raise ValueError(
            f"learning rates from {low:g} to {high:g}: the first must be above 0 and below the last, which is 1e6 at "
            f"most; {LOWEST:g} to {HIGHEST:g} is usual"
        )
    return [low * (high / low) ** (i / (steps - 1)) for i in range(steps)]
