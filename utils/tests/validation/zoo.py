"""Tiny models, sound and broken in one known way each, that map ids (B, T) to logits (B, T, V)."""

import torch
import torch.nn.functional as F
from torch import nn

V, BLOCK, C, HEADS = 64, 32, 32, 4


class Attention(nn.Module):
    def __init__(self, mask="causal", p=0.0):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(C, C) for _ in range(4))
        self.mask, self.p = mask, p

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = (proj(x).view(B, T, HEADS, -1).transpose(1, 2) for proj in (self.q, self.k, self.v))
        diagonal = {"causal": 0, "ahead": 1, "none": T, "short": 0}[self.mask]
        seen = torch.ones(T, T, dtype=torch.bool).tril(diagonal)
        if self.mask == "short":  # made for half of the block; what is beyond sees everything
            seen[BLOCK // 2 :] = True
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=p)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, norm=nn.LayerNorm, **options):
        super().__init__()
        self.ln1, self.attn, self.ln2 = norm(C), Attention(**options), norm(C)
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    def __init__(self, tied=False, layers=2, vocab=V, block=BLOCK, **options):
        super().__init__()
        self.tok, self.pos = nn.Embedding(V, C), nn.Embedding(block, C)
        self.drop = nn.Dropout(options.get("p", 0.0))
        self.blocks = nn.ModuleList(Block(**options) for _ in range(layers))
        self.ln, self.head = nn.LayerNorm(C), nn.Linear(C, vocab, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        if tied:
            self.head.weight = self.tok.weight

    def hidden(self, idx):
        x = self.drop(self.tok(idx) + self.pos(torch.arange(idx.shape[1], device=idx.device)))
        for block in self.blocks:
            x = block(x)
        return self.ln(x)

    def forward(self, idx):
        return self.head(self.hidden(idx))


class PostLN(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.pos = nn.Embedding(V, C), nn.Parameter(torch.zeros(1, BLOCK, C))
        layer = nn.TransformerEncoderLayer(C, HEADS, 4 * C, dropout=0.1, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 3), nn.Linear(C, V)

    def forward(self, idx):
        T = idx.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        return self.head(self.encoder(self.tok(idx) + self.pos[:, :T], mask=mask, is_causal=True))


class GRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.rnn = nn.Embedding(V, C), nn.GRU(C, C, num_layers=2, batch_first=True)
        self.head = nn.Linear(C, V)

    def forward(self, idx):
        return self.head(self.rnn(self.tok(idx))[0])


class Llama(nn.Module):
    """RMSNorm, rotary positions, SwiGLU, no biases, a mask kept in a buffer, padding index 0."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.n1, self.n2 = nn.RMSNorm(C), nn.RMSNorm(C)
            self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
            self.gate, self.up, self.down = nn.Linear(C, 64), nn.Linear(C, 64), nn.Linear(64, C)
            self.register_buffer("mask", torch.full((BLOCK, BLOCK), float("-inf")).triu(1), persistent=False)

        def forward(self, x):
            B, T, _ = x.shape
            q, k, v = self.qkv(self.n1(x)).view(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            half = q.shape[-1] // 2
            angle = torch.arange(T)[:, None] / 100 ** (torch.arange(half) / half)
            cos, sin = angle.cos(), angle.sin()

            def turn(z):
                a, b = z.float().split(half, -1)
                return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(z.dtype)

            scores = turn(q) @ turn(k).transpose(-2, -1) / (2 * half) ** 0.5 + self.mask[:T, :T]
            y = scores.softmax(-1).to(v.dtype) @ v
            x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
            h = self.n2(x)
            return x + self.down(F.silu(self.gate(h)) * self.up(h))

    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(V, C, padding_idx=0)
        self.layers = nn.ModuleList(Llama.Layer() for _ in range(2))
        self.norm, self.head = nn.RMSNorm(C), nn.Linear(C, V, bias=False)

    def forward(self, idx):
        x = self.tok(idx)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def zero_init(head: bool) -> nn.Module:
    """Residual projections start at zero, as in muP and nanochat; with `head` the output layer too."""
    model = GPT()
    for block in model.blocks:
        for layer in (block.attn.out, block.mlp[2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    if head:
        nn.init.zeros_(model.head.weight)
    return model


class Caching(GPT):
    """Keeps its last activations, so that it cannot be deep-copied; counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, idx):
        self.calls += 1
        self.last = self.hidden(idx)
        return self.head(self.last)


def caching() -> nn.Module:
    model = Caching()
    model(torch.zeros(1, 4, dtype=torch.int64))
    return model


GOOD = {
    "gpt": GPT,
    "gpt with dropout": lambda: GPT(p=0.2),
    "tied": lambda: GPT(tied=True),
    "deep": lambda: GPT(layers=8),
    "post-LN": PostLN,
    "gru": GRU,
    "llama": Llama,
    "zero-init residuals": lambda: zero_init(head=False),
    "zero-init everything": lambda: zero_init(head=True),
    "cannot be copied": caching,
    "bfloat16": lambda: GPT().bfloat16(),
}


class NoGradientToBlock(GPT):
    def hidden(self, idx):
        x = self.tok(idx) + self.pos(torch.arange(idx.shape[1]))
        x = x + self.blocks[0](x).detach()
        return self.ln(self.blocks[1](x))


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


class NaN(GPT):
    def __init__(self):
        super().__init__()
        self.blocks[1].mlp[1] = Root()


class WithBatchNorm(GPT):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(C)

    def forward(self, idx):
        return self.head(self.norm(self.hidden(idx).transpose(1, 2)).transpose(1, 2))


class ContextFree(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(V, C), nn.Linear(C, C), nn.GELU(), nn.Linear(C, V))

    def forward(self, idx):
        return self.net(idx)


class AlwaysDropout(GPT):
    def hidden(self, idx):
        return F.dropout(super().hidden(idx), 0.2)


class Transposed(GPT):
    def forward(self, idx):
        return super().forward(idx).transpose(1, 2)


class Tuple(GPT):
    def forward(self, idx):
        return super().forward(idx), None


class Raises(GPT):
    def forward(self, idx):
        raise RuntimeError("the left <b>flange</b> is loose\nand more")


class Probabilities(GPT):
    def forward(self, idx):
        return super().forward(idx).softmax(-1)


class DeadReLU(GPT):
    def __init__(self):
        super().__init__()
        self.extra, self.back = nn.Linear(C, C), nn.Linear(C, C)
        nn.init.constant_(self.extra.bias, -100.0)

    def hidden(self, idx):
        x = super().hidden(idx)
        return x + self.back(self.extra(x).relu())


class BatchSecond(GPT):
    def hidden(self, idx):
        return super().hidden(idx) + self.tok(idx).mean(0, keepdim=True)


def exploding() -> nn.Module:
    model = GPT()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
            module.weight.data *= 50
    return model
