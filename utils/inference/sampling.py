"""Choose the next token from its scores; pure functions that know nothing of models or text."""

import math

import torch
from torch import Tensor


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Raises ValueError, with what was given and what is allowed, if a setting is out of range."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature={temperature} must be 0 (take the likeliest token) or a number above")
    if top_k < 0:
        raise ValueError(f"top_k={top_k} must be a number of tokens, or 0 for no limit")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be a probability above 0 and at most 1 (1 = no limit)")


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the `k` largest of each row to -inf: (B, V), same back."""
    values, ids = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -math.inf).scatter(-1, ids, values)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep each row's smallest set of tokens that together reach probability `p`: (B, V), same back.

    The rest is -inf; at least one token stays. Nucleus sampling: Holtzman et al. 2020,
    https://arxiv.org/abs/1904.09751.
    """
    values, ids = logits.sort(dim=-1, descending=True, stable=True)
    probs = values.softmax(dim=-1)
    likelier = probs.cumsum(dim=-1) - probs  # probability of all tokens before this one
    return torch.full_like(logits, -math.inf).scatter(-1, ids, values.masked_fill(likelier >= p, -math.inf))


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token id per row: logits (B, V) to (B,) int64.

    `temperature` 0 takes the likeliest; below 1 sharpens, above 1 flattens. `top_k` then keeps that many
    tokens (0 = all), and `top_p` the likeliest that together reach that probability (1 = all). `generator`
    must live on the logits' device; None draws from torch's global one. Raises ValueError if a setting is out
    of range.
    """
    check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(dim=-1)
    # From the largest down, a tiny temperature sends all others to -inf; as they are, all would overflow.
    logits = (logits.float() - logits.amax(dim=-1, keepdim=True)) / temperature
    if top_k:
        logits = keep_top_k(logits, top_k)
    if top_p < 1:
        logits = keep_top_p(logits, top_p)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(-1)
