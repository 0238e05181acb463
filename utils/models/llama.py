"""Llama: rotary positions, RMSNorm, SwiGLU, grouped heads; knows nothing of text, losses or sampling.

B = batch, T = tokens, C = n_embd, H = n_head, K = n_kv_head, D = C / H (channels per head), V = vocab_size,
S = tokens that can be seen: T, plus those already in the cache.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.config.schema import ModelShape
from utils.models.documents import check_documents, positions, same_document

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
    cos, sin = rotation
    x1, x2 = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((x2, x1), dim=-1), sin).type_as(x)  # (B, T, heads, D)


class Attention(nn.Module):
    """Each token gathers from those up to itself; H / K heads share keys and values .

    Grouped-query attention: Ainslie et al. 2023, https://arxiv.org/abs/2305.13245.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = shape.n_head, shape.n_kv_head or shape.n_head
        self.head_dim, self.dropout = shape.n_embd // shape.n_head, shape.dropout
        self.qkv = nn.Linear(shape.n_embd, (self.n_head + 2 * self.n_kv_head) * self.head_dim, bias=False)
        self.out = nn.Linear(shape.n_embd, shape.n_embd, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None, cache: Any, layer: int) -> Tensor:
        B, T, C = x.shape
        H, K = self.n_head, self.n_kv_head
        qk, v = self.qkv(x).view(B, T, H + 2 * K, self.head_dim).split((H + K, K), dim=2)
        qk = rotate(qk, rotation).transpose(1, 2)  # (B, H + K, T, D)
        q, k, v = qk[:, :H], qk[:, H:], v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(layer, k, v)  # (B, K, S, D) each
        if mask is not None and mask.dim() == 4:  # documents: no fast kernel takes such a mask and grouped heads
            k, v = (each.repeat_interleave(H // K, dim=1) for each in (k, v))  # (B, H, T, D) each
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None and T > 1,
            enable_gqa=k.shape[1] < H,
            dropout_p=self.dropout if self.training else 0.0,
        )  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)


class MLP(nn.Module):
    """SwiGLU: one half gates the other (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        # Three matrices of 8/3 C cost what two of 4 C do; a multiple of 32 suits the hardware.
        n_hidden = shape.n_hidden or 32 * math.ceil(8 * shape.n_embd / 3 / 32)
        self.gate = nn.Linear(shape.n_embd, n_hidden, bias=False)
        self.up = nn.Linear(shape.n_embd, n_hidden, bias=False)
        self.down = nn.Linear(n_hidden, shape.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # (B, T, C)


class Block(nn.Module):
    """Attention, then MLP, each after RMSNorm (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.norm_1 = nn.RMSNorm(shape.n_embd, eps=NORM_EPS)
        self.attention = Attention(shape)
        self.norm_2 = nn.RMSNorm(shape.n_embd, eps=NORM_EPS)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None, cache: Any, layer: int) -> Tensor:
        y = self.attention(self.norm_1(x), rotation, mask, cache, layer)
        x = x + F.dropout(y, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm_2(x)), self.dropout, self.training)  # (B, T, C)


class Llama(nn.Module):
    """The decoder of Llama 2 (Touvron et al. 2023, https://arxiv.org/abs/2307.09288).

    Same function as transformers' `LlamaForCausalLM` for the same weights.
    """

    task = "causal"
    packs_documents = True

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        assert shape.n_embd % shape.n_head == 0, "n_embd must be a multiple of n_head"
        assert shape.n_embd // shape.n_head % 2 == 0, "RoPE turns pairs: n_embd / n_head must be even"
        assert shape.n_head % (shape.n_kv_head or shape.n_head) == 0, "n_head must be a multiple of n_kv_head"
        self.shape = shape
        self.token_embedding = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.norm = nn.RMSNorm(shape.n_embd, eps=NORM_EPS)
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
        residual_std = std / math.sqrt(2 * self.shape.n_layer)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                into_residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=residual_std if into_residual else std)

    def forward(self, input_ids: Tensor, cache: Any = None, documents: Tensor | None = None) -> Tensor:
        """Score every possible next token after every token.

        `input_ids` is (B, T) int64; the result is (B, T, V), unnormalised log-probabilities.

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
        x = F.dropout(self.token_embedding(input_ids), self.shape.dropout, self.training)  # (B, T, C)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, mask, cache, layer)
        if cache is not None:
            cache.advance(T)
        return self.head(self.norm(x))  # (B, T, V)
