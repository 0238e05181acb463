"""Which neurons of a BDH speak, per layer and token, as plain numbers; draws nothing.

A neuron's number is its head x N + its place in the head: the row of `decoder` it writes with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.models.bdh import BDH, norm

TOP = 8


@dataclass(frozen=True)
class LayerActivity:
    """What the neurons of one layer said about one text of T tokens."""

    layer: int
    share_u: float
    """Share of neurons above 0 that read the token itself, over all tokens."""
    share_y: float
    """Share above 0 that read what was gathered from earlier tokens."""
    share_both: float
    """Share where both are above 0: only these write into the residual stream."""
    neurons: list[list[int]]
    """The most active of `u * y` for each token, strongest first."""
    values: list[list[float]]
    """Their `u * y`; 0 where fewer were active."""


@torch.no_grad()
def activations(model: BDH, input_ids: Sequence[int] | Tensor, top: int = TOP) -> list[LayerActivity]:
    """Run one text of T tokens, a list or a tensor of (T,) or (1, T), and look at every layer, without dropout.

    The text is read in one piece: memory for (T, T) scores and some (T, all neurons), so keep it to a screenful.
    The model's mode stays as it is. Raises ValueError if the text is empty or more than one.
    """
    ids = torch.as_tensor(input_ids, device=model.encoder.device)
    if ids.numel() == 0 or ids.dim() > 2 or (ids.dim() == 2 and len(ids) > 1):
        raise ValueError(f"input_ids has shape {tuple(ids.shape)}: pass the token ids of one text, at least one")
    rotation = model.rotation(0, ids.numel())
    x = norm(model.embed(ids.view(1, -1)))  # (1, T, D)
    was_training, model.training = model.training, False
    try:
        found = []
        for layer in range(model.shape.n_layer):
            u, y, _ = model.neurons(x, rotation, None, first=True)  # (H, 1, T, N) each
            x = model.mix(x, u, y)
            found.append(_describe(layer, u, y, top))
    finally:
        model.training = was_training
    return found


def _describe(layer: int, u: Tensor, y: Tensor, top: int) -> LayerActivity:
    both = u * y
    by_token = both.squeeze(1).transpose(0, 1).flatten(1).float()  # (T, H x N)
    values, neurons = by_token.topk(min(top, by_token.shape[1]), dim=1)
    shares = [(each > 0).float().mean().item() for each in (u, y, both)]
    return LayerActivity(layer, *shares, neurons=neurons.tolist(), values=values.tolist())
