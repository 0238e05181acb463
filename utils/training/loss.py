"""The one place where logits become a loss. Labels are already shifted: label t belongs to logit t."""

import math

import torch
import torch.nn.functional as F

IGNORE = -100  # the label of a position that is not counted
MAX_LOSS = 100.0  # nats; exp() of more says nothing and soon overflows


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy summed over counted labels, in nats, and how many there were: two scalars.

    Sums, not means: a mean of means weighs tokens unequally. logits (B, T, V) and labels (B, T), or (B, K) and (B,)
    where a text is given one of K classes. Where no label counts, the sum is 0, and so is its gradient.
    """
    # In float32 whatever the model computes in: a sum over thousands of bf16 numbers loses digits.
    flat = logits.flatten(0, -2).float()  # (B*T, V), or (B, K)
    total = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return total, count_labels(labels)


def count_labels(labels: torch.Tensor) -> torch.Tensor:
    """How many labels count, as a scalar."""
    return (labels != IGNORE).sum()


def count_correct(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = IGNORE) -> tuple[int, int]:
    """How many counted labels are the most likely token or class, and how many were counted."""
    counted = labels != ignore_index
    right = (logits.argmax(-1) == labels) & counted
    return int(right.sum()), int(counted.sum())


def perplexity(loss: float) -> float:
    """exp(loss in nats per token), with the loss clipped at 100."""
    return math.exp(min(loss, MAX_LOSS))
