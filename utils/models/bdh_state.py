"""What BDH remembers of a text: one matrix per layer and head, as large after a million tokens as after one."""

import torch
from torch import Tensor


class BDHState:
    """Sums over all tokens read of (rotated neurons outer residual stream), `sums[layer]` of (H, B, N, D).

    Takes the place of a key-value cache. Half precision cannot add a small number to a large one, so sums are
    never held in less than fp32.
    """

    def __init__(
        self,
        n_layer: int,
        batch: int,
        n_head: int,
        n_neuron: int,
        n_embd: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self.length = 0
        size = (n_head, batch, n_neuron, n_embd)
        dtype = torch.promote_types(dtype, torch.float32)
        self.sums: list[Tensor] = [torch.zeros(size, dtype=dtype, device=device) for _ in range(n_layer)]

    def advance(self, n_tokens: int) -> None:
        """The last `n_tokens` are in every layer's sum: count them."""
        self.length += n_tokens

    def reset(self) -> None:
        """Forget every token."""
        self.length = 0
        self.sums = [torch.zeros_like(each) for each in self.sums]
