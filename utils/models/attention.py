"""Causal attention, by whichever kernel is fastest where it runs; knows no model.

B = batch, H = heads, K = key-value heads, T = tokens that ask, S = tokens that can be seen, D = channels per head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.models.layers import by_hand

QUERIES = 256  # in one block: it sees no key behind its last query, so long texts cost little more than half
LONGEST = 2048  # tokens; what the plain form keeps for the backward pass grows with the square of them


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Softmax attention of queries (B, H, T, D) to keys and values (B, K, S, D): (B, H, T, D).

    Without a mask each query sees the keys up to its own place; `mask`, True where a query may look, which is never
    behind its own place, broadcasts to (B, H, T, S). H is a multiple of K: each key-value head serves H / K heads.
    """
    T, groups = q.shape[2], int(q.shape[1] // k.shape[1])  # int: in torch.jit.trace sizes are tensors
    if T > 1 and k.shape[2] == T and T <= LONGEST and _plain_is_faster(q):
        if groups > 1:
            k, v = (each.repeat_interleave(groups, dim=1) for each in (k, v))
        if dropout:
            return _with_dropout(q, k, v, mask, dropout)
        y: Tensor = BlockedAttention.apply(q, k, v, mask)
        return y
    if groups > 1 and not _serves_groups(q, mask):
        k, v, groups = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1), 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None and bool(T > 1), dropout_p=dropout, enable_gqa=groups > 1
    )


def _with_dropout(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same as torch's operations one by one, with dropout of the probabilities."""
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # (B, H, T, S)
    chances = torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
    return F.dropout(chances, dropout) @ v  # (B, H, T, D)


def _serves_groups(q: Tensor, mask: Tensor | None) -> bool:
    """Whether a fast kernel takes fewer key-value heads than heads; elsewhere torch would fall back on a slow one."""
    if q.device.type == "cuda":  # flash attention does: no mask, 16 bits, Ampere or newer
        return mask is None and q.dtype != torch.float32 and torch.cuda.get_device_properties(q.device).major >= 8
    return mask is None or mask.dim() < 4


def _plain_is_faster(q: Tensor) -> bool:
    """On a CPU the fused kernel's backward pass is two to six times slower than plain matrix products."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and by_hand(q)


class BlockedAttention(torch.autograd.Function):
    """softmax(q k' / sqrt(D)) v over the lower triangle, written as matrix products of blocks of queries.

    The probabilities are kept for the backward pass, (B, H, T, T) / 2 of them and a little more.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """Queries, keys, values, (B, H, T, D) each; and what of the lower triangle is seen, if not all of it."""
        *qkv, mask = inputs
        B, H, T, D = qkv[0].shape
        q, k, v = (each.reshape(B * H, T, D) for each in qkv)  # (BH, T, D)
        hidden = None if mask is None else ~mask  # broadcasts to (B, H, T, T)
        parts, kept = [], []
        for start, end in _blocks(T):
            scores = torch.baddbmm(
                _future(start, end, q).expand(B * H, -1, -1), q[:, start:end], k[:, :end].transpose(1, 2), alpha=D**-0.5
            )  # (BH, end - start, end)
            if hidden is not None:
                scores.view(B, H, end - start, end).masked_fill_(hidden[..., start:end, :end], float("-inf"))
            kept.append(torch.softmax(scores, dim=-1))
            parts.append(torch.bmm(kept[-1], v[:, :end]))
        ctx.save_for_backward(q, k, v, *kept)
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return y.view(B, H, T, D)

    @staticmethod
    @torch.autograd.function.once_differentiable  # what is kept is no input: a second derivative would be wrong
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """From the result's gradient, (B, H, T, D), to those of queries, keys and values."""
        q, k, v, *kept = ctx.saved_tensors
        shape, (_, T, D) = grads[0].shape, q.shape
        dy, scale = grads[0].reshape(-1, T, D), D**-0.5
        parts: list[Tensor] = []
        dk = dv = None
        for (start, end), p in reversed(list(zip(_blocks(T), kept, strict=True))):  # the last block sees every key
            dy_part, q_part = dy[:, start:end], q[:, start:end]
            ds = torch._softmax_backward_data(torch.bmm(dy_part, v[:, :end].transpose(1, 2)), p, -1, p.dtype)
            parts.append(_scaled(ds, k[:, :end], scale))
            dk_part, dv_part = _scaled(ds.transpose(1, 2), q_part, scale), torch.bmm(p.transpose(1, 2), dy_part)
            if dk is None or dv is None:
                dk, dv = dk_part, dv_part
            else:
                dk[:, :end] += dk_part
                dv[:, :end] += dv_part
        assert dk is not None
        assert dv is not None
        dq = parts[0] if len(parts) == 1 else torch.cat(parts[::-1], dim=1)
        return dq.view(shape), dk.view(shape), dv.view(shape), None


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """a b * scale, in one product."""
    return torch.baddbmm(b.new_empty(()), a, b, beta=0, alpha=scale)


def _blocks(T: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERIES, T)) for start in range(0, T, QUERIES)]


def _future(start: int, end: int, like: Tensor) -> Tensor:
    """What is added to the scores of queries start .. end - 1: minus infinity where a key comes after the query."""
    return torch.full((end - start, end), float("-inf"), dtype=like.dtype).triu(start + 1)
