"""GPT-2: learned positions, LayerNorm before each part, GELU; knows nothing of text, losses or sampling.

B = batch, T = tokens, C = n_embd, H = n_head, D = C / H (channels per head), V = vocab_size,
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
from utils.models.layers import MLP, QKNorm, ValueMixer

NORM_EPS = 1e-5
INIT_STD = 0.02


class Attention(nn.Module):
    """Each token gathers from those up to itself (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.n_head, self.layer, self.dropout = shape.n_head, layer, shape.dropout
        self.qkv = nn.Linear(shape.n_embd, 3 * shape.n_embd)  # queries, keys, values: one product, not three
        self.out = nn.Linear(shape.n_embd, shape.n_embd)
        head_dim = shape.n_embd // shape.n_head
        self.qk_norm = QKNorm(shape.n_head, shape.n_head, head_dim, NORM_EPS) if shape.qk_norm else None
        self.mixer = ValueMixer(layer) if shape.value_residual else None

    def forward(self, x: Tensor, mask: Tensor | None, cache: Any, first: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What each token gathers, (B, T, C); and the `first` layer's values, where layers above want them."""
        B, T, C = x.shape
        H = self.n_head
        qkv = self.qkv(x).view(B, T, 3 * H, C // H).transpose(1, 2)  # (B, 3H, T, D)
        if self.qk_norm is None:
            q, k, v = qkv.split(H, dim=1)  # (B, H, T, D) each
        else:
            qk, v = qkv.split((2 * H, H), dim=1)
            q, k = self.qk_norm(qk.transpose(1, 2)).transpose(1, 2).split(H, dim=1)
        if self.mixer is not None:
            v, first = self.mixer(v, first)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (B, H, S, D) each
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, C)), first


class Block(nn.Module):
    """Attention, then MLP; each reads the normed residual stream and adds to it."""

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.norm_1 = nn.LayerNorm(shape.n_embd, eps=NORM_EPS)
        self.attention = Attention(shape, layer)
        self.norm_2 = nn.LayerNorm(shape.n_embd, eps=NORM_EPS)
        self.mlp = MLP(shape, "gelu" if shape.activation == "auto" else shape.activation, bias=True)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Any, first: Tensor | None) -> tuple[Tensor, Tensor | None]:
        y, first = self.attention(self.norm_1(x), mask, cache, first)
        x = x + F.dropout(y, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm_2(x)), self.dropout, self.training), first  # (B, T, C)


class GPT(nn.Module):
    """The decoder of GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

    Same function as transformers' `GPT2LMHeadModel` for the same weights.

    The switches of `shape` (activation, qk_norm, value_residual, zero_init) are explained in `utils/models/layers.py`
    and docs/models.md; without them it is the published model.

    With `checkpointing` a block keeps only what it was given, and in the backward pass computes the rest again (Chen
    et al. 2016, https://arxiv.org/abs/1604.06174): the same gradients from less memory. It acts in training only.
    """

    task = "causal"
    packs_documents = True
    optimizer = "muon"  # what learns most in the same time: docs/training.md
    full_precision = ("token_embedding", "position_embedding")  # what a copy in bf16 leaves in fp32
    checkpointing = False  # may be set at any time

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        assert shape.n_embd % shape.n_head == 0, "n_embd must be a multiple of n_head"
        assert shape.n_kv_head in (0, shape.n_head), "a gpt has no grouped heads"
        self.shape = shape
        self.token_embedding = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.position_embedding = nn.Embedding(shape.block_size, shape.n_embd)
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.n_layer))
        self.norm = nn.LayerNorm(shape.n_embd, eps=NORM_EPS)
        self.head = nn.Linear(shape.n_embd, shape.vocab_size, bias=False)
        if shape.tie_embeddings:
            self.head.weight = self.token_embedding.weight
        self._init_weights()

    def _init_weights(self) -> None:
        # Each block adds to the residual stream twice; as in GPT-2, depth must not swell it.
        # Or it begins as if there were no blocks (Zhang et al. 2019, Fixup, https://arxiv.org/abs/1901.09321).
        residual_std = 0.0 if self.shape.zero_init else INIT_STD / math.sqrt(2 * self.shape.n_layer)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                into_residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=residual_std if into_residual else INIT_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, input_ids: Tensor, cache: Any = None, documents: Tensor | None = None) -> Tensor:
        """Score every possible next token after every token: `hidden`, then the output layer.

        `input_ids` is (B, T) int64; the result is (B, T, V), unnormalised log-probabilities.
        """
        return self.head(self.hidden(input_ids, cache, documents))  # (B, T, V)

    def hidden(self, input_ids: Tensor, cache: Any = None, documents: Tensor | None = None) -> Tensor:
        """What the output layer reads: (B, T, C) for ids (B, T).

        A `cache` holds the keys and values of `cache.length` earlier tokens, which `input_ids` continue. It
        has `update(layer, k, v)`, which stores (B, H, T, D) each and returns all stored so far, (B, H, S, D)
        each; and `advance(T)`, called once at the end of a forward, which adds T to `length`.

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
        places = self.position_embedding.weight[start:end]  # (T, C)
        if documents is not None:
            check_documents(documents, input_ids, cache)
            mask = same_document(documents).tril()  # (B, 1, T, T)
            places = self.position_embedding(positions(documents))  # (B, T, C)
        x = self.token_embedding(input_ids) + places  # (B, T, C)
        x = F.dropout(x.type_as(self.norm.weight), self.shape.dropout, self.training)
        again = self.checkpointing and self.training and torch.is_grad_enabled() and cache is None
        first = None  # the first layer's values
        for block in self.blocks:
            given = (x, mask, cache, first)
            x, first = checkpoint(block, *given, use_reentrant=False) if again else block(*given)
        if cache is not None:
            cache.advance(T)
        return self.norm(x)  # (B, T, C)
