"""Tier 1 against a zoo: sound models of many designs must pass, each broken one must fail where it is broken."""

import copy
import json
import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.validation.tier1 import CHECKS, run_tier1

V, BLOCK, C, HEADS = 64, 32, 32, 4


class Attention(nn.Module):
    def __init__(self, mask="causal", p=0.0):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(C, C) for _ in range(4))
        self.mask, self.p = mask, p

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = (proj(x).view(B, T, HEADS, -1).transpose(1, 2) for proj in (self.q, self.k, self.v))
        diagonal = {"causal": 0, "ahead": 1, "none": T}[self.mask]
        seen = torch.ones(T, T, dtype=torch.bool).tril(diagonal)
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
            self.gate, self.up, self.down = nn.Linear(C, 64, bias=False), nn.Linear(C, 64), nn.Linear(64, C)
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
    """Keeps its last activations for a picture, so that it cannot be deep-copied; counts its calls in a buffer."""

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


class NaN(GPT):
    def hidden(self, idx):
        return super().hidden(idx)

    def __init__(self):
        super().__init__()
        self.blocks[1].mlp[1] = type("Root", (nn.Module,), {"forward": lambda self, x: x.sqrt()})()


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


BAD = {
    "no causal mask": (lambda: GPT(mask="none"), "causality", "position 0 is the first .* up to 31 ahead", "mask is missing"),
    "mask off by one": (lambda: GPT(mask="ahead", layers=1), "causality", "up to 1 ahead", "off by one.*diagonal=0"),
    "detached block": (NoGradientToBlock, "gradients", r"cut off from the gradient: blocks\.0\.ln1", "detach"),
    "NaN": (NaN, "shapes", r"NaN or infinite; first in the output of blocks\.1\.mlp\.1 \(Root\)", "square root"),
    "batch norm": (WithBatchNorm, "batch independence", "training mode; batch normalisation: norm", "LayerNorm"),
    "mixes the batch": (BatchSecond, "batch independence", "evaluation mode|training mode", "dimension 0"),
    "context-free": (ContextFree, "context", "moved no later logits", "lookup table"),
    "transposed": (Transposed, "shapes", r"returned \(.*\), expected \(.*64\)", "swapped.*transpose"),
    "wrong vocabulary": (lambda: GPT(vocab=50), "shapes", r"returned \(1, 1, 50\)", "gives 50 scores .* 64 tokens"),
    "dropout in eval": (AlwaysDropout, "determinism", "eval mode: logits differ", "training=self.training"),
    "exploding": (exploding, "initialisation", "exploding", "std 0.02"),
    "few positions": (lambda: GPT(block=10), "shapes", r"IndexError.*test_tier1.py:\d+ in hidden: x = ", "block_size = 32"),
    "raises": (Raises, "shapes", r"RuntimeError: the left .* is loose \(at test_tier1.py:\d+ in forward", "Open that line"),
    "tuple": (Tuple, "shapes", r"returns a tuple, expected a tensor \(B, T, V\)", "logits alone"),
    "softmax at the end": (Probabilities, "stability", "probabilities", "Drop the softmax"),
    "dead relu": (DeadReLU, "gradients", r"exactly zero: extra\.weight", "never active"),
}


def run(make, **options):
    torch.manual_seed(1)
    return run_tier1(make(), V, BLOCK, **options)


def by_status(report, status):
    return {check.name: check for check in report.checks if check.status == status}


@pytest.mark.parametrize("name", GOOD)
def test_sound_models_do_not_fail(name):
    report = run(GOOD[name])
    assert not by_status(report, "fail"), str(report)
    assert not by_status(report, "skip"), str(report)
    if name in ("gpt", "gpt with dropout", "tied", "deep", "cannot be copied", "llama"):
        assert report.verdict == "sound", str(report)
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", BAD)
def test_broken_models_fail_where_they_are_broken(name):
    make, check, measured, advice = BAD[name]
    report = run(make)
    failed = by_status(report, "fail")
    assert list(failed) == [check], str(report)
    assert re.search(measured, failed[check].measured), failed[check].measured
    assert re.search(advice, failed[check].advice), failed[check].advice
    assert report.verdict == "not sound"


def test_unused_parameters_are_named():
    class Unused(GPT):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(C, C)

    report = run(Unused)
    assert list(by_status(report, "warn")) == ["gradients"], str(report)
    assert by_status(report, "warn")["gradients"].measured == "unused: spare.weight, spare.bias"
    assert report.verdict == "sound, with warnings"


def test_zero_init_is_explained_not_failed():
    warned = by_status(run(lambda: zero_init(head=True)), "warn")
    assert "starts at zero" in warned["gradients"].measured and "deliberate" in warned["gradients"].advice
    assert "starts at zero" in warned["stability"].measured


def test_a_leak_behind_a_zero_projection_is_found():
    def make():
        model = GPT(mask="none")
        nn.init.zeros_(model.head.weight)
        return model

    assert "causality" in by_status(run(make), "fail")


def test_causal_none_only_reports():
    for mask, word in (("none", "bidirectional"), ("causal", "causal: ")):
        report = run(lambda mask=mask: GPT(mask=mask), causal=None)
        assert by_status(report, "pass")["causality"].measured.startswith(word)
    assert by_status(run(lambda: GPT(mask="none"), causal=False), "pass")["causality"]
    assert "looks only back" in by_status(run(GPT, causal=False), "warn")["causality"].advice


def test_a_working_short_length_is_enough_for_the_other_checks():
    report = run(lambda: GPT(block=10))
    assert set(by_status(report, "pass")) == set(CHECKS) - {"shapes"}
    skipped = by_status(run(Raises), "skip")
    assert set(skipped) == set(CHECKS) - {"shapes"}


def test_one_crashing_check_does_not_stop_the_others(monkeypatch):
    class NoTraining(GPT):
        def forward(self, idx):
            if self.training:
                raise ValueError("no training today")
            return super().forward(idx)

    report = run(NoTraining)
    failed = by_status(report, "fail")
    assert {"gradients", "learning"} <= set(failed) and "shapes" in by_status(report, "pass")
    assert "ValueError: no training today (at test_tier1.py:" in failed["gradients"].measured


def test_memory_counts_tied_weights_once():
    model = GPT(tied=True)
    values = {check.name: check.values for check in run_tier1(model, V, BLOCK).checks}["memory"]
    count = sum(p.numel() for p in model.parameters())
    assert (values["parameters"], values["tied"]) == (count, V * C)
    assert values["weights_mb"] == pytest.approx(4 * count / 1e6)
    assert values["training_mb"] == pytest.approx(16 * count / 1e6 + values["activations_mb"])
    assert values["activations_mb"] > 0


@pytest.mark.parametrize("make", [WithBatchNorm, caching], ids=["copied", "in place"])
def test_the_model_is_left_as_found(make):
    model = make()
    model.train()
    model.blocks[0].eval()
    model.tok.weight.requires_grad_(False)
    model.head.weight.grad = torch.randn_like(model.head.weight)
    before = copy.deepcopy(dict(model.state_dict()))
    grad, kept = model.head.weight.grad, model.head.weight.grad.clone()
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    draws = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    with torch.no_grad():  # a caller's no_grad must neither matter nor be changed
        run_tier1(model, V, BLOCK)
        assert not torch.is_grad_enabled()

    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert model.head.weight.grad is grad and torch.equal(grad, kept)
    assert all(p.grad is None for name, p in model.named_parameters() if name != "head.weight")
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["tok.weight"]
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.equal(draws[0], torch.get_rng_state())
    assert np.array_equal(draws[1], np.random.get_state()[1]) and draws[2] == random.getstate()


def test_the_same_seed_measures_the_same():
    def measure(seed):
        report = run(lambda: GPT(p=0.1), seed=seed)
        return {c.name: (c.status, c.values) for c in report.checks if c.name not in ("memory", "speed")}

    assert measure(3) == measure(3) != measure(4)


def test_tiny_limits_and_wrong_requests():
    report = run_tier1(GPT(), V, 1)
    assert not by_status(report, "fail"), str(report)
    assert set(by_status(report, "skip")) == {"causality", "context"}
    with pytest.raises(TypeError, match="must be a torch.nn.Module; got function"):
        run_tier1(lambda ids: ids, V, BLOCK)
    with pytest.raises(ValueError, match="vocab_size >= 2"):
        run_tier1(GPT(), 1, BLOCK)
