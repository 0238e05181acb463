"""What each attention head looks at: captures the weights of one forward pass and names the patterns.

B sequences, H heads, L looking tokens, S seen tokens. Knows no model: attention is caught where it is computed, in
`F.scaled_dot_product_attention`, in `nn.MultiheadAttention` or in a softmax of the right shape, whatever the import.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from utils.validation.figures import MAX_PANELS
from utils.validation.observe import longest, tier2
from utils.validation.report import Check
from utils.validation.subject import Subject

TOKENS = 48  # of a map: enough for patterns, few enough to look at
NAMED = 0.4  # a head that gives one kind of place this much of its weight has that pattern
EVEN = 0.97  # of the largest possible entropy: beyond it, a head looks at everything alike
SOFTMAXES = (torch.softmax, F.softmax, Tensor.softmax, torch.special.softmax)
WHY = "Heads that look somewhere in particular are what attention adds: maps show which do, and where."


@dataclass(frozen=True)
class Head:
    """One head's map and its numbers."""

    layer: int  # counted in order of use
    head: int
    module: str  # where it was computed
    weights: Tensor  # (L, S), of the first sequence
    entropy: float  # of the rows, as a share of the largest possible; 1 = looks at everything alike
    distance: float  # tokens between looking and seen, on average; NaN where they are not the same sequence
    sparsity: float  # share of the seen tokens that get less than a tenth of an even share
    pattern: str
    scores: dict[str, float]  # weight given to each kind of place, on average


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights (B, H, L, S), float32, that `F.scaled_dot_product_attention` uses for the same arguments."""
    if enable_gqa and query.dim() > 2:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query.float() @ key.float().transpose(-2, -1) * scale  # (B, H, L, S)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    if attn_mask is not None:
        attn_mask = attn_mask.to(scores.device)
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1)


class AttentionCapture(TorchFunctionMode):
    """While it is entered, every attention of a model that `watch` knows is kept in `found`: (module, (B, H, L, S)).

    Args:
        batch: B.
        lengths: the L and S that a softmax must have to be taken for attention; an output layer has others.
    """

    def __init__(self, batch: int, lengths: set[int]) -> None:
        super().__init__()
        self.batch, self.lengths = batch, lengths
        self.found: list[tuple[str, Tensor]] = []
        self.inside: list[str] = []

    def watch(self, model: nn.Module) -> Callable[[], None]:
        """Keep track of which module is running; returns what ends that."""
        handles = []

        def enter(name: str) -> Callable:
            return lambda module, args: self.inside.append(name)

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            self.inside.pop()

        def end() -> None:
            for handle in handles:
                handle.remove()

        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave, always_call=True))
        return end

    def keep(self, weights: Tensor) -> None:
        weights = weights.detach().float()
        shape = (self.batch, -1, *weights.shape[-2:])
        name = self.inside[-1] if self.inside else ""
        self.found.append((name, weights.reshape(shape)))

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:  # it calls the others inside, where this mode is not active
            average = kwargs.get("average_attn_weights", True)
            wanted = kwargs.get("need_weights", True)
            out, weights = func(*args, **{**kwargs, "need_weights": True, "average_attn_weights": False})
            self.keep(weights)
            return out, (weights.mean(-3) if average else weights) if wanted else None
        out = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self.keep(attention_weights(*args, **kwargs))
        elif func in SOFTMAXES and self._is_attention(out, args, kwargs):
            self.keep(out)
        return out

    def _is_attention(self, out: Tensor, args: tuple, kwargs: dict) -> bool:
        dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
        if dim not in (-1, out.dim() - 1) or out.dim() not in (3, 4) or out.shape[0] % self.batch:
            return False
        return out.shape[-2] in self.lengths and out.shape[-1] in self.lengths


def capture(subject: Subject, ids: Tensor) -> list[tuple[str, Tensor]]:
    """Every attention of one forward pass in evaluation mode: (module's name, weights (B, H, L, S))."""
    lengths = {ids.shape[1]} | ({subject.source(1).shape[1]} if subject.task == "seq2seq" else set())
    mode = AttentionCapture(len(ids), lengths)
    end = mode.watch(subject.model)
    try:
        with mode:
            subject.logits(ids)
    finally:
        end()
    return mode.found


def heads(found: list[tuple[str, Tensor]], period: int = 0) -> list[Head]:
    """Every captured head, measured.

    Args:
        found: what `capture` returns.
        period: after how many tokens the sequence repeats; 0 where it does not.
    """
    result = []
    for layer, (module, weights) in enumerate(found):
        seen = (weights != 0).any(0).any(0)  # (L, S)
        for head in range(weights.shape[1]):
            result.append(_measure(layer, head, module, weights[:, head], seen, period))
    return result


def _measure(layer: int, head: int, module: str, weights: Tensor, seen: Tensor, period: int) -> Head:
    L, S = seen.shape
    width = seen.sum(-1)  # (L,) tokens each can see
    rows = width > 1  # a row that sees one token has no choice
    mean = weights.mean(0)  # (L, S)
    scores: dict[str, float] = {}
    if not rows.any():
        return Head(layer, head, module, weights[0], math.nan, math.nan, math.nan, "one token", scores)
    entropy = torch.special.entr(weights).sum(-1)[:, rows] / width[rows].log()
    small = (weights < 0.1 / width.clamp_min(1)[:, None]) & seen
    sparsity = small[:, rows].sum() / (seen[rows].sum() * len(weights))
    distance = math.nan
    if L == S:
        place = torch.arange(L, device=mean.device)
        distance = (mean * (place[:, None] - place).abs()).sum(-1)[rows].mean().item()
        judged = (width > 3) & (place > 0)  # where even looking gives no place a quarter or more
        if judged.any():
            scores = {
                "self": mean.diagonal()[judged].mean().item(),
                "previous": mean.diagonal(-1)[judged[1:]].mean().item(),
                "first": mean[judged & (place > 1), 0].mean().item(),
            }
            later = (place > period) & judged  # the token after the last time this token was seen
            if period > 1 and later.any():
                scores["induction"] = mean[later, place[later] - period + 1].mean().item()
    else:
        scores = {"first": mean[rows & (width > 3), 0].mean().item()}
    return Head(
        layer, head, module, weights[0], entropy.mean().item(), distance, sparsity.item(),
        _pattern(scores, entropy.mean().item()), scores,
    )  # fmt: skip


def _pattern(scores: dict[str, float], entropy: float) -> str:
    if not math.isfinite(entropy):
        return "NaN"
    best = max(scores, key=lambda name: scores[name], default="")
    if best and scores[best] >= NAMED:
        return best
    return "even" if entropy > EVEN else "mixed"


@tier2(WHY)
def check_attention(subject: Subject) -> Check:
    """Maps of every head on a random sequence that comes twice, and how many look where."""
    length = longest(subject, TOKENS)
    length -= length == subject.vocab_size  # else the output layer's softmax has the shape of attention, too
    if length < 4:
        return Check("attention", "skip", "needs four positions")
    period = length // 2 if length >= 8 else 0
    ids = subject.tokens(2, length)
    if period:
        ids = torch.cat([ids[:, :period], ids[:, :period], ids[:, : length - 2 * period]], dim=1)
    all_heads = heads(capture(subject, ids), period)
    if not all_heads:
        measured = (
            "not available, because no attention was seen: no scaled_dot_product_attention, no "
            "nn.MultiheadAttention and no softmax of tokens by tokens (recurrent, convolutional and linear "
            "attention models have none)"
        )
        return Check("attention", "skip", measured)
    counts: dict[str, int] = {}
    for head in all_heads:
        counts[head.pattern] = counts.get(head.pattern, 0) + 1
    values = {
        "heads": len(all_heads),
        "patterns": counts,
        "per_head": [
            {"layer": h.layer, "head": h.head, "module": h.module, "pattern": h.pattern, "entropy": h.entropy,
             "distance": h.distance, "sparsity": h.sparsity, "scores": h.scores}
            for h in all_heads[:256]
        ],
    }  # fmt: skip
    figure = _figure(all_heads)
    words = ", ".join(f"{count} {PATTERNS[name]}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    known = [head for head in all_heads if math.isfinite(head.entropy)]
    threshold = "finite numbers"
    if len(known) < len(all_heads) and counts.get("NaN"):
        broken = next(head for head in all_heads if head.pattern == "NaN")
        advice = "A row in which everything is masked, or scores that overflow: keep one place open per row."
        measured = f"{counts['NaN']} of {len(all_heads)} heads hold NaN, first in {broken.module or 'the model'}"
        return Check("attention", "warn", measured, threshold, advice, values=values, figure=figure)
    measured = f"{len(all_heads)} {'head looks' if len(all_heads) == 1 else 'heads look'}: {words}"
    if known:
        sharp = min(known, key=lambda head: head.entropy)
        measured += (
            f". Sharpest: layer {sharp.layer} head {sharp.head} ({sharp.module or 'the model'}), "
            f"entropy {sharp.entropy:.0%} of even"
        )
    if counts.get("even") == len(all_heads):
        measured += ". Normal before training; a trained model would not be using its attention"
    return Check("attention", "pass", measured, threshold, values=values, figure=figure)


PATTERNS = {
    "self": "at itself",
    "previous": "at the previous token",
    "first": "at the first token (a sink)",
    "induction": "at what followed last time (induction)",
    "even": "at everything alike",
    "mixed": "at several of these",
    "one token": "with one token to see",
    "NaN": "with NaN",
}


def _figure(all_heads: list[Head]) -> dict:
    """The maps, in order; where there are more than fit, of the heads that choose most."""
    shown = sorted(all_heads, key=lambda head: head.entropy if math.isfinite(head.entropy) else 2.0)[:MAX_PANELS]
    shown = sorted(shown, key=lambda head: (head.layer, head.head))
    panels, high = [], 0.0
    for head in shown:
        weights = head.weights[:TOKENS, :TOKENS].cpu()
        late = weights[4:] if len(weights) > 8 else weights  # the first rows see so little that all is large
        high = max(high, torch.nan_to_num(late).max().item())
        rows = [[None if math.isnan(v) else round(v, 3) for v in row] for row in weights.tolist()]
        panels.append({"title": f"L{head.layer} H{head.head} {head.pattern}", "rows": rows})
    more = "" if len(shown) == len(all_heads) else f", the {len(shown)} sharpest of {len(all_heads)} heads"
    return {
        "kind": "heatmaps",
        "title": f"Attention by layer and head{more}",
        "x_label": "seen token",
        "y_label": "looking token",
        "panels": panels,
        "low": 0.0,
        "high": high or 1.0,
    }
