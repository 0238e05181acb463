"""How a peer is told to train; knows no peer."""

import math
from dataclasses import dataclass

FAR = 10_000_000  # steps: a run that something else ends


@dataclass(frozen=True)
class Recipe:
    """What nanoGPT's config says of a run, with its defaults where nothing else is said."""

    batch_size: int
    steps: int = FAR
    dropout: float = 0.0
    bias: bool = True  # nanoGPT's model alone has a choice
    rate: float = 1e-3
    least_rate: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)

    def rate_at(self, step: int) -> float:
        """nanoGPT's learning rate: linear warmup, then a cosine to the least rate."""
        if step < self.warmup:
            return self.rate * (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.least_rate + 0.5 * (1 + math.cos(math.pi * done)) * (self.rate - self.least_rate)
