"""A number that shows at a resume whether weights, text and arithmetic are what they were; knows no file.

Every checkpoint keeps the loss of the first few validation examples under the weights that training goes on from. Equal
weights, computed in the same way, give the same number to the last bit.
"""

from dataclasses import dataclass

from utils.data.batching.tasks import Batch, TaskBatches
from utils.training.evaluate import evaluate, part
from utils.training.loss import IGNORE
from utils.training.step import Stepper

EXAMPLES = 4
# How far the losses of equal weights may lie apart, as a share, where another machine or version rounds otherwise.
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class Few:
    """The first examples of `val`, as one batch that `evaluate` takes."""

    val: TaskBatches
    batch_size: int = EXAMPLES

    def __len__(self) -> int:
        return 1

    def batch(self, i: int) -> Batch:
        """All of them."""
        return part(self.val.batch(i), 0, self.batch_size)


def probe(stepper: Stepper, val: TaskBatches) -> float | None:
    """Loss of the first validation examples in nats per label, computed as training does; None where none counts."""
    few = Few(val)
    if not (few.batch(0).labels != IGNORE).any():
        return None
    found = evaluate(stepper.refreshed(), few, stepper.device, stepper.autocast)
    return None if found is None else found.loss


def differs(before: float, now: float, precision: str) -> str:
    """In words how far a probe is from the one that was saved; empty where they are equal bit for bit.

    Raises ValueError where they are too far apart to be of the same weights.
    """
    if before == now:
        return ""
    words = f"the probe loss is {now:.9g}, saved was {before:.9g}"
    if not abs(now - before) <= TOLERANCE[precision] * abs(before):
        raise ValueError(
            f"{words}: these are not the weights, the text or the code that were saved. Bring back what has changed, "
            "or start a new run with another --run-dir"
        )
    return words
