"""Llama: rotary positions, RMSNorm, SwiGLU, grouped heads; knows nothing of text, losses or sampling.

B = batch, T = tokens, C = n_embd, H = n_head, K = n_kv_head, D = C / H (channels per head), V = vocab_size,
S = tokens that can be seen: T, plus those already in the cache.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils.config.schema import ModelShape
from utils.models.attention import attend
from utils.models.documents import check_documents, positions, same_document
from utils.models.layers import MLP, QKNorm, RMSNorm, ValueMixer, by_hand

NORM_EPS = 1e-5
ROPE_THETA = 10000.0

Rotation = tuple[Tensor, Tensor]  # cosine and sine


def rotary_angles(head_dim: int, length: int) -> Rotation:
    """Cosine and sine of position x frequency, (length, 1, head_dim) each, fp32.

    RoPE: Su et al. 2021, https://arxiv.org/abs/2104.09864. Channel i turns with channel i + head_dim / 2, as
    in transformers' Llama; the first half of the sines is negated, as `rotate` wants it.
    """
    frequency = ROPE_THETA ** -(torch.arange(0, head_dim, 2).float() / head_dim)  # (D/2)
    angle = torch.outer(torch.arange(length).float(), frequency)[:, None]  # (length, 1, D/2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair of channels by the angle of its position: x1 cos - x2 sin, x2 cos + x1 sin."""
    y: Tensor = Rotate.apply(x, *rotation) if by_hand(x) else _turned(x, *rotation)
    return y.type_as(x)  # (B, T, heads, D)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    return (x * cos).addcmul_(torch.cat((x2, x1), dim=-1), sin)


class Rotate(torch.autograd.Function):
    """`rotate`, whose backward pass is the same turn the other way."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        """What is turned, the cosines and the sines."""
        x, cos, sin = inputs
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """What is turned has a gradient, the angles have none."""
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, -sin), None, None


class Attention(nn.Module):
    """Each token gathers from those up to itself; H / K heads share keys and values.

    Grouped-query attention: Ainslie et al. 2023, https://arxiv.org/abs/2305.13245.
    """

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.layer = shape.n_head, shape.n_kv_head or shape.n_head, layer
        self.head_dim, self.dropout = shape.n_embd // shape.n_head, shape.dropout
        self.qkv = nn.Linear(shape.n_embd, (self.n_head + 2 * self.n_kv_head) * self.head_dim, bias=False)
        shared = self.n_kv_head * self.head_dim
        self.fused = {"qkv": (shape.n_embd, shared, shared)}  # matrices that lie in one: Muon turns each by itself
        self.out = nn.Linear(shape.n_embd, shape.n_embd, bias=False)
        self.qk_norm = QKNorm(self.n_head, self.n_kv_head, self.head_dim, NORM_EPS) if shape.qk_norm else None
        self.mixer = ValueMixer(layer) if shape.value_residual else None

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None, cache: Any, first: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What each token gathers, (B, T, C); and the `first` layer's values, where layers above want them."""
        B, T, C = x.shape
        H, K = self.n_head, self.n_kv_head
        qk, v = self.qkv(x).view(B, T, H + 2 * K, self.head_dim).split((H + K, K), dim=2)
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        if self.mixer is not None:
            v, first = self.mixer(v, first)
        q, k = rotate(qk, rotation).transpose(1, 2).split((H, K), dim=1)  # (B, H, T, D), (B, K, T, D)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (B, K, S, D) each
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, C)), first


class Block(nn.Module):
    """Attention, then MLP, each after RMSNorm (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.norm_1 = RMSNorm(shape.n_embd, eps=NORM_EPS)
        self.attention = Attention(shape, layer)
        self.norm_2 = RMSNorm(shape.n_embd, eps=NORM_EPS)
        self.mlp = MLP(shape, "swiglu" if shape.activation == "auto" else shape.activation, bias=False)

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None, cache: Any, first: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        y, first = self.attention(self.norm_1(x), rotation, mask, cache, first)
        x = x + F.dropout(y, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm_2(x)), self.dropout, self.training), first  # (B, T, C)


class Llama(nn.Module):
    """The decoder of Llama 2 (Touvron et al. 2023, https://arxiv.org/abs/2307.09288).

    Same function as transformers' `LlamaForCausalLM` for the same weights; with `shape.qk_norm` that of
    `Qwen3ForCausalLM`, with `shape.activation` relu2 that of `ArceeForCausalLM`.

    The switches of `shape` (activation, qk_norm, value_residual, zero_init) are explained in `utils/models/layers.py`
    and docs/models.md; without them it is the published model.

    With `checkpointing` a block keeps only what it was given, and in the backward pass computes the rest again (Chen
    et al. 2016, https://arxiv.org/abs/1604.06174): the same gradients from less memory. It acts in training only.
    """

    task = "causal"
    packs_documents = True
    optimizer = "muon"  # what learns most in the same time: docs/training.md
    full_precision = ("token_embedding",)  # what a copy in bf16 leaves in fp32
    checkpointing = False  # may be set at any time

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        assert shape.n_embd % shape.n_head == 0, "n_embd must be a multiple of n_head"
        assert shape.n_embd // shape.n_head % 2 == 0, "RoPE turns pairs: n_embd / n_head must be even"
        assert shape.n_head % (shape.n_kv_head or shape.n_head) == 0, "n_head must be a multiple of n_kv_head"
        self.shape = shape
        self.token_embedding = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.n_layer))
        self.norm = RMSNorm(shape.n_embd, eps=NORM_EPS)
        self.head = nn.Linear(shape.n_embd, shape.vocab_size, bias=False)
        if shape.tie_embeddings:
            self.head.weight = self.token_embedding.weight
        cos, sin = rotary_angles(shape.n_embd // shape.n_head, shape.block_size)
        self.register_buffer("cos", cos, persistent=False)  # no file needs what a formula gives
        self.register_buffer("sin", sin, persistent=False)
        self._init_weights()

    def _init_weights(self) -> None:
        # "Small init" (Nguyen & Salazar 2019, https://arxiv.org/abs/1910.05895): GPT-2's 0.02 at 1,000 wide, and
        # more where it is narrower, which a small model needs to get going.
        std = math.sqrt(2 / (5 * self.shape.n_embd))
        # Each block adds to the residual stream twice; as in GPT-2, depth must not swell it.
        # Or it begins as if there were no blocks (Zhang et al. 2019, Fixup, https://arxiv.org/abs/1901.09321).
        residual_std = 0.0 if self.shape.zero_init else std / math.sqrt(2 * self.shape.n_layer)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                into_residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=residual_std if into_residual else std)

    def forward(self, input_ids: Tensor, cache: Any = None, documents: Tensor | None = None) -> Tensor:
        """Score every possible next token after every token: `hidden`, then the output layer.

        `input_ids` is (B, T) int64; the result is (B, T, V), unnormalised log-probabilities.
        """
        return self.head(self.hidden(input_ids, cache, documents))  # (B, T, V)

    def hidden(self, input_ids: Tensor, cache: Any = None, documents: Tensor | None = None) -> Tensor:
        """What the output layer reads: (B, T, C) for ids (B, T).

        A `cache` holds the keys and values of `cache.length` earlier tokens, which `input_ids` continue. It
        has `update(layer, k, v)`, which stores (B, K, T, D) each and returns all stored so far, (B, K, S, D)
        each; and `advance(T)`, called once at the end of a forward, which adds T to `length`. Keys are stored
        rotated.

        `documents`, (B, T) as in `utils/models/documents.py`, keeps the documents of a row apart: each is scored as if
        it stood alone. Not together with a cache.

        Raises ValueError if the text, with what is cached, is longer than `shape.block_size`.
        """
        T = input_ids.shape[1]
        start = 0 if cache is None else cache.length
        end = start + T
        if end > self.shape.block_size:
            raise ValueError(f"{end} tokens are more than this model's block_size of {self.shape.block_size}")

        mask = None  # is_causal says it too, and faster, but only when nothing is cached
        if start and T > 1:
            mask = torch.ones(T, end, dtype=torch.bool, device=input_ids.device).tril(start)  # (T, S)
        rotation = self.cos[start:end], self.sin[start:end]  # (T, 1, D) each
        if documents is not None:
            check_documents(documents, input_ids, cache)
            mask, place = same_document(documents).tril(), positions(documents)  # (B, 1, T, T), (B, T)
            rotation = self.cos[place], self.sin[place]  # (B, T, 1, D) each
        x = self.token_embedding(input_ids).type_as(self.norm.weight)  # (B, T, C)
        x = F.dropout(x, self.shape.dropout, self.training)
        # In bf16 that moves a score of 1 by some 0.0025, wherever in a text (the angles are of fp32): as much as the
        # rounding of its query and key. Cosines in fp32 would make turning up to twice as slow.
        rotation = rotation[0].type_as(x), rotation[1].type_as(x)
        again = self.checkpointing and self.training and torch.is_grad_enabled() and cache is None
        first = None  # the first layer's values
        for block in self.blocks:
            given = (x, rotation, mask, cache, first)
            x, first = checkpoint(block, *given, use_reentrant=False) if again else block(*given)
        if cache is not None:
            cache.advance(T)
        return self.norm(x)  # (B, T, C)
