"""A number that shows at a resume whether weights, text and arithmetic are what they were; knows no file.

Every checkpoint keeps the loss of the first few validation examples under the weights that training goes on from. Equal
weights, computed in the same way, give the same number to the last bit.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from utils.data.batching.tasks import Batch, TaskBatches
from utils.runtime.randomness import derive_seed
from utils.training.evaluate import evaluate
from utils.training.loss import IGNORE
from utils.training.step import Stepper

EXAMPLES = 4
# How far the losses of equal weights may lie apart where another machine or version rounds otherwise: as a share of the
# loss, or in nats where it is below 1.
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class Few:
    """The first examples of `val`, as one batch that `evaluate` takes: the same whatever the batch size."""

    val: TaskBatches
    batch_size: int = EXAMPLES

    def __len__(self) -> int:
        return 1

    def batch(self, i: int) -> Batch:
        """All of them."""
        return self.val.examples(np.arange(min(self.batch_size, self.val.examples_per_epoch)))


def probe(stepper: Stepper, val: TaskBatches) -> float | None:
    """Loss of the first validation examples in nats per label, computed as training does; None where none counts."""
    few = Few(val)
    if not (few.batch(0).labels != IGNORE).any():
        return None
    torch.manual_seed(derive_seed(stepper.config.seed, "probe"))  # for a model that draws even when it is evaluated
    found = evaluate(stepper.refreshed(), few, stepper.device, stepper.autocast)
    return None if found is None else found.loss


def differs(before: float, now: float, *formats: str) -> str:
    """In words how far a probe is from the one that was saved; empty where they are equal bit for bit.

    `formats`: the number formats both were computed in. Raises ValueError where they are too far apart to be of the
    same weights.
    """
    if before == now or (math.isnan(before) and math.isnan(now)):
        return ""
    words = f"the probe loss is {now:.9g}, saved was {before:.9g}"
    if not abs(now - before) <= max(TOLERANCE[name] for name in formats) * max(1.0, abs(before)):
        raise ValueError(
            f"{words}: these are not the weights, the text or the code that were saved. Bring back what has changed, "
            "go on from an earlier checkpoint (tbt resume RUN --checkpoint STEP), or start a new run"
        )
    return words
