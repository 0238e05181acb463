"""What a step does to each layer: how large its gradient is, and how far its weights move."""

from typing import Any

import torch
from torch import Tensor, nn

from utils.models.folder import unwrap
from utils.runs.layers import BINS, LOWEST
from utils.training.memory import is_out_of_memory

PIECE = 1 << 22  # numbers looked at in one go, so that a large table costs little memory
EXPONENTS, BIAS = 256, 127  # of a float32


class LayerStats:
    """Statistics of one optimizer step, for each tensor of trained weights; made anew for every step looked at.

    Call `before` with the gradients in place, neither scaled nor clipped, and `rows` when the weights have changed.
    Meanwhile it holds a second copy of the weights; where there is no room for one, the update is not measured.
    """

    def __init__(self, model: nn.Module) -> None:
        self._named = {name: p for name, p in unwrap(model).named_parameters() if p.requires_grad}
        self._rows: dict[str, dict[str, Any]] = {}
        self._norms: list[Tensor] = []
        self._earlier: list[Tensor] | None = None

    @torch.no_grad()
    def before(self) -> None:
        """Look at the gradients, and remember the weights."""
        weights = list[Tensor](self._named.values())
        self._norms = list(torch._foreach_norm(weights))
        have = [name for name, weight in self._named.items() if weight.grad is not None]
        gradients: list[Tensor] = [weight.grad for weight in weights if weight.grad is not None]
        norms = dict(zip(have, torch._foreach_norm(gradients) if gradients else [], strict=True))
        for name, weight in self._named.items():
            zeros, counts = (0, [0] * EXPONENTS) if weight.grad is None else exponents(weight.grad)
            self._rows[name] = {
                "name": name,
                "shape": list(weight.shape),
                "size": weight.numel(),
                "gradient_norm": norms[name].item() if name in norms else None,
                "zeros": zeros,
                "not_finite": counts[-1],
                "histogram": histogram(counts),
            }
        try:
            self._earlier = [weight.detach().clone() for weight in weights]
        except Exception as error:  # torch says "no memory" in several ways
            if not is_out_of_memory(error):
                raise

    @torch.no_grad()
    def rows(self) -> list[dict[str, Any]]:
        """One row for each tensor: name, shape, size; gradient_norm and weight_norm before the step, update_ratio.

        update_ratio is the norm of the step's change over that of the weight, None where there was none (or all is 0).
        zeros and not_finite are counts of gradients; histogram counts the others, see `histogram`.
        """
        weights = list[Tensor](self._named.values())
        moved: list[float | None] = [None] * len(weights)
        if self._earlier is not None:
            torch._foreach_sub_(self._earlier, weights)
            moved = torch.stack(torch._foreach_norm(self._earlier)).tolist()
            self._earlier = None
        norms = torch.stack(self._norms).tolist() if self._norms else []
        for name, norm, change in zip(self._named, norms, moved, strict=True):
            ratio = change / norm if change is not None and norm else None
            self._rows[name] |= {"weight_norm": norm, "update_ratio": ratio}
        return list(self._rows.values())


def exponents(values: Tensor) -> tuple[int, list[int]]:
    """How many of the values are 0, and how many of the others have each exponent of a float32, the last: not finite.

    The bits say it: that is several times as fast as a logarithm.
    """
    counts = torch.zeros(EXPONENTS, dtype=torch.int64, device=values.device)
    for piece in values.detach().float().flatten().split(PIECE):  # type: ignore[no-untyped-call]
        counts += torch.bincount((piece.view(torch.int32) >> 23) & (EXPONENTS - 1), minlength=EXPONENTS)
    zeros = values.numel() - int(values.count_nonzero())
    counts[0] -= zeros  # their exponent is that of numbers below 2^-126
    return zeros, counts.tolist()


def histogram(counts: list[int]) -> list[int]:
    """From `exponents` to BINS bins of two powers of two each; bin i counts 2^(LOWEST + 2i) <= |g| < four times that.

    Smaller ones are in the first bin, larger ones in the last; zeros and what is not finite are in none.
    """
    bins = [0] * BINS
    for exponent, count in enumerate(counts[:-1]):
        bins[min(max((exponent - BIAS - LOWEST) // 2, 0), BINS - 1)] += count
    return bins
