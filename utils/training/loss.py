"""The one place where logits become a loss. Labels are already shifted: label t belongs to logit t.

N labels (of B texts of T tokens), C channels, V tokens or classes.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # the label of a position that is not counted
MAX_LOSS = 100.0  # nats; exp() of more says nothing and soon overflows
# How many logits exist at once, whatever the batch. The weight's gradient (V, C) is gone through once a chunk: at
# 1,024 x 768 x 50,304 in bf16, on one core, a quarter of this costs 40 % more than all at once, half of it 10 %.
CHUNK = 1 << 26


def token_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over counted labels, in nats, and how many there were: two scalars.

    Sums, not means: a mean of means weighs tokens unequally. logits (B, T, V) and labels (B, T), or (B, K) and (B,)
    where a text is given one of K classes. Where no label counts, the sum is 0, and so is its gradient.
    """
    # In float32 whatever the model computes in: a sum over thousands of bf16 numbers loses digits.
    flat = logits.flatten(0, -2).float()  # (N, V)
    total = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return total, count_labels(labels)


def training_loss(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, z_weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`token_loss`, and what training makes small beside it: two scalars, sums in nats. Differentiate their sum.

    `smoothing` is the share of the target that is spread over all tokens (Szegedy et al. 2016, section 7,
    https://arxiv.org/abs/1512.00567; the sum is torch's `cross_entropy(label_smoothing=...)`). `z_weight` times the
    squared log of the softmax's denominator keeps logits from drifting (Chowdhery et al. 2022, PaLM, section 5,
    https://arxiv.org/abs/2204.02311).
    """
    if not smoothing and not z_weight:
        total = token_loss(logits, labels)[0]
        return total, torch.zeros_like(total)
    flat, flat_labels = logits.flatten(0, -2).float(), labels.flatten()
    at, ignored = flat_labels.clamp(min=0)[:, None], flat_labels == IGNORE
    log_p = F.log_softmax(flat, -1)
    right = log_p.gather(-1, at)[:, 0]  # (N,)
    beside = _beside(log_p, right, flat.gather(-1, at)[:, 0] - right, smoothing, z_weight)
    return -right.masked_fill(ignored, 0.0).sum(), beside.masked_fill(ignored, 0.0).sum()


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    z_weight: float = 0.0,
    chunk: int = 0,
) -> tuple[Tensor, Tensor]:
    """`training_loss` of the logits hidden @ weight.T, of which at most about `chunk` (0: CHUNK) exist at once.

    hidden (B, T, C), weight (V, C), labels (B, T), to two scalars in fp32. Exact, not sampled: products in the dtype
    that is given (or autocast's), softmax and sums in fp32. Differentiate the sum of the two, once: where there are
    several chunks the first carries no gradient and the second that of both. Raises RuntimeError where it is
    differentiated twice. Not for inside of torch.compile.
    """
    rows = max(1, (chunk or CHUNK) // len(weight))
    if labels.numel() <= rows:  # autograd's few large operations are the fastest there
        return training_loss(F.linear(hidden, weight), labels, smoothing, z_weight)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    learns = torch.is_grad_enabled()
    chunks = -(-labels.numel() // rows)
    rows = -(-labels.numel() // chunks)  # all alike: a product with few rows is a slow one
    with torch.autocast(kind, enabled=False):
        whole, part = _Chunked.apply(  # type: ignore[no-untyped-call]
            hidden.flatten(0, -2), weight, labels.flatten(), smoothing, z_weight, rows, learns
        )
        return part, whole - part


def _beside(log_p: Tensor, right: Tensor, log_sum: Tensor, smoothing: float, z_weight: float) -> Tensor:
    """What is made small beside each row's cross-entropy: (N,)."""
    beside = torch.zeros_like(right)
    if smoothing:
        beside = beside + smoothing * (right - log_p.mean(-1))
    if z_weight:
        beside = beside + z_weight * log_sum.square()
    return beside


class _Chunked(torch.autograd.Function):
    """The gradient is computed with the loss, chunk by chunk, while the logits are there: no product is done twice."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (N, C)
        weight: Tensor,  # (V, C)
        labels: Tensor,  # (N,)
        smoothing: float,
        z_weight: float,
        rows: int,
        learns: bool,
    ) -> tuple[Tensor, Tensor]:
        to_hidden, to_weight = (learns and needed for needed in ctx.needs_input_grad[:2])
        # fp32 also for 16-bit weights: each chunk adds little to what the ones before have left.
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if to_weight else None  # (V, C)
        hidden_grad = torch.empty_like(hidden) if to_hidden else None  # (N, C)
        part, beside = torch.zeros((2,), device=hidden.device).unbind()
        for first in range(0, len(hidden), rows):
            here = slice(first, first + rows)
            x, at = hidden[here], labels[here].clamp(min=0)[:, None]
            ignored = labels[here] == IGNORE
            logits = x @ weight.T  # (n, V)
            log_p = F.log_softmax(logits, -1, dtype=torch.float32)
            right = log_p.gather(-1, at)[:, 0]  # (n,)
            log_sum = logits.gather(-1, at)[:, 0].float() - right
            part -= right.masked_fill(ignored, 0.0).sum()
            if smoothing or z_weight:
                more = _beside(log_p, right, log_sum, smoothing, z_weight)
                beside += more.masked_fill(ignored, 0.0).sum()
            if not (to_hidden or to_weight):
                continue
            d = log_p.exp_()  # of the loss by the logits: the softmax without what was wanted
            if z_weight:
                d *= (1 + 2 * z_weight * log_sum)[:, None]
            d.scatter_add_(-1, at, torch.full_like(right, smoothing - 1)[:, None])
            if smoothing:
                d -= smoothing / len(weight)
            d.masked_fill_(ignored[:, None], 0.0)
            d = d.to(hidden.dtype)
            if hidden_grad is not None:
                torch.mm(d, weight, out=hidden_grad[here])
            if weight_grad is None:
                continue
            if weight_grad.dtype == d.dtype:
                weight_grad.addmm_(d.T, x)
            else:
                weight_grad += d.T @ x
        ctx.gradients = hidden_grad, weight_grad
        ctx.mark_non_differentiable(part)
        return part + beside, part

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradient of linear_loss is there only once: call it again")
        gradients, ctx.gradients = ctx.gradients, None
        # In place: they are as large as what they belong to, and nobody else has them.
        found = [None if gradient is None else gradient.mul_(grads[0]) for gradient in gradients]
        return *found, None, None, None, None, None


def count_labels(labels: Tensor) -> Tensor:
    """How many labels count, as a scalar."""
    return (labels != IGNORE).sum()


def count_correct(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> tuple[int, int]:
    """How many counted labels are the most likely token or class, and how many were counted."""
    counted = labels != ignore_index
    right = (logits.argmax(-1) == labels) & counted
    return int(right.sum()), int(counted.sum())


def perplexity(loss: float) -> float:
    """exp(loss in nats per token), with the loss clipped at 100."""
    return math.exp(min(loss, MAX_LOSS))
