"""Is a run still learning? Numbers that are not finite, and losses that jump and stay up.

A loss is high when it lies above `mean + margin`, both running, where the margin is train.spike or six times the
spread, whichever is more: a batch of a few labels may be far off by chance, and the spread says how far is usual. One
high loss is a hard batch, which comes again at the same step whatever is done about it. Three in a row are a spike;
in the first steps, while nobody knows the spread yet, five that are twice as high.
"""

from dataclasses import dataclass, field

from utils.config.schema import TrainConfig

PATIENCE = 5  # steps in a row that may be skipped
LASTING, LASTING_AT_FIRST = 3, 5  # high losses in a row
WIDE = 6.0  # spreads above the mean: not by chance
UNSETTLED = 20  # losses until the spread is known
SLOWEST_MEAN, SLOWEST_SPREAD = 0.05, 0.01  # weight of the newest loss in the running mean, and in the running variance


@dataclass
class Guard:
    """What was seen of a run's losses so far: small, JSON, saved in every checkpoint."""

    rate_scale: float = 1.0  # what the learning rate is multiplied by: halved at each rollback
    rollbacks: int = 0
    skipped: int = 0  # steps left out because their gradient was not finite
    in_row: int = 0  # of those, the last ones without one that was finite between
    seen: int = 0  # losses that the mean is of
    mean: float | None = None  # running mean of the loss, in nats
    variance: float = 0.0  # running mean of the squared distance from it
    high: list[float] = field(default_factory=list)  # the last losses, as far as they are high: not in the mean yet

    @property
    def calm(self) -> bool:
        """Whether nothing is wrong at the moment; what is saved while something is may be what is wrong."""
        return not self.in_row and not self.high

    def watch(self, loss: float, finite: bool, config: TrainConfig) -> str | None:
        """Take in one step; gives back why the run has to go back to its last good checkpoint, or None."""
        if not finite:
            self.skipped, self.in_row = self.skipped + 1, self.in_row + 1
            if self.in_row >= PATIENCE:
                return f"the loss or its gradient was not finite in {self.in_row} steps in a row"
            return None
        self.in_row = 0
        if self.mean is None:
            self._take_in(loss)
            return None
        settled = self.seen >= UNSETTLED
        margin = max(config.spike if settled else 2 * config.spike, WIDE * self.variance**0.5)
        if config.spike and loss > self.mean + margin:
            self.high.append(loss)
            if len(self.high) >= (LASTING if settled else LASTING_AT_FIRST):
                return f"the loss rose from about {self.mean:.4g} to {loss:.4g} and stayed up"
            return None
        bar = self.mean + margin
        for late in (*self.high, loss):
            self._take_in(min(late, bar))  # hard batches widen the spread, but none by more than the bar allows
        self.high = []
        return None

    def _take_in(self, loss: float) -> None:
        self.seen += 1
        if self.mean is None:
            self.mean = loss
            return
        distance = loss - self.mean
        self.mean += max(SLOWEST_MEAN, 1 / self.seen) * distance
        self.variance += max(SLOWEST_SPREAD, 1 / self.seen) * (distance**2 - self.variance)
