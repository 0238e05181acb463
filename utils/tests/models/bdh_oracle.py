"""BDH straight from its equations, one pair of tokens at a time: slow, and right if one reads it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5


def oracle_logits(weights: dict[str, Tensor], n_layer: int, input_ids: Tensor) -> Tensor:
    """Logits (B, T, V) in float64 for published weights; no dropout."""
    w = {name: p.double() for name, p in weights.items()}
    return torch.stack([one_text(w, n_layer, ids.tolist()) for ids in input_ids])


def one_text(w: dict[str, Tensor], n_layer: int, ids: list[int]) -> Tensor:
    H, D, _ = w["encoder"].shape
    x = [normed(w["embed.weight"][i]) for i in ids]  # T of (D)
    for _ in range(n_layer):
        u = [[F.relu(x_t @ w["encoder"][h]) for h in range(H)] for x_t in x]  # T x H of (N)
        q = [[rotated(u[t][h], t) for h in range(H)] for t in range(len(ids))]
        after = []
        for t, x_t in enumerate(x):
            z = []
            for h in range(H):
                a = torch.zeros(D, dtype=torch.float64)
                for s in range(t):  # strictly before t
                    a = a + (q[t][h] @ q[s][h]) * x[s]
                z.append(u[t][h] * F.relu(normed(a) @ w["encoder_v"][h]))
            after.append(normed(x_t + normed(torch.cat(z) @ w["decoder"])))
        x = after
    return torch.stack(x) @ w["lm_head"]


def normed(x: Tensor) -> Tensor:
    """Mean 0, variance 1 over the channels."""
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + EPS)


def rotated(u: Tensor, t: int) -> Tensor:
    """Each pair of neighbours turned by the phase of token t, which is fp32 as published."""
    n = len(u)
    out = torch.empty_like(u)
    for j in range(0, n, 2):
        exponent = torch.tensor(float(j)) / n
        frequency = 1.0 / (65536.0**exponent) / (2 * math.pi)
        phase = ((torch.tensor(float(t)) * frequency) % 1 * (2 * math.pi)).double()
        cos, sin = phase.cos(), phase.sin()
        out[j] = u[j] * cos - u[j + 1] * sin
        out[j + 1] = u[j + 1] * cos + u[j] * sin
    return out
