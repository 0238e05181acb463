"""What a model has read of a text, so that a new token costs one step, not a whole text.

K = n_kv_head, D = channels per head, T = new tokens, S = tokens stored, new ones included.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from utils.config.schema import ModelShape
from utils.models.folder import unwrap


class Cache(Protocol):
    """What generation asks of a cache; the model that reads and fills it knows the rest."""

    length: int

    def reset(self) -> None: ...


def make_cache(model: nn.Module, batch: int = 1) -> Cache | None:
    """An empty cache for `batch` texts: the model's own kind, else keys and values.

    None for a model from elsewhere, of whose insides nothing is known: it reads the whole text for every token.
    """
    model = unwrap(model)
    if hasattr(model, "new_cache"):
        return model.new_cache(batch)
    return KVCache.for_model(model, batch) if isinstance(model.shape, ModelShape) else None


class KVCache:
    """Keys and values: room for `capacity` tokens per layer, allocated once; `length` of them are filled.

    A model calls `update` once per layer and then `advance` once; until then each layer sees the old
    `length`.
    """

    def __init__(
        self,
        n_layer: int,
        batch: int,
        n_kv_head: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self.capacity = capacity
        self.length = 0
        size = (n_layer, batch, n_kv_head, capacity, head_dim)
        self.keys = torch.zeros(size, dtype=dtype, device=device)
        self.values = torch.zeros(size, dtype=dtype, device=device)

    @classmethod
    def for_model(cls, model: nn.Module, batch: int = 1) -> "KVCache":
        """A cache for `batch` texts of up to block_size tokens, in the model's dtype and on its device."""
        model = unwrap(model)
        shape, weight = model.shape, next(model.parameters())
        n_kv_head = shape.n_kv_head or shape.n_head
        head_dim = shape.n_embd // shape.n_head
        return cls(shape.n_layer, batch, n_kv_head, shape.block_size, head_dim, weight.dtype, weight.device)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' k and v, (B, K, T, D) each; returns the layer's so far, (B, K, S, D) each.

        What it returns are views of the cache. Raises ValueError if there is no room.
        """
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(f"{end} tokens are more than this cache holds: its capacity is {self.capacity}")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, n_tokens: int) -> None:
        """The last `n_tokens` are stored in every layer: count them."""
        self.length += n_tokens

    def reset(self) -> None:
        """Forget every token; the memory stays."""
        self.length = 0
