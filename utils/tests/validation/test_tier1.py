"""Tier 1 against a zoo: sound models of many designs pass, each broken one fails where it is broken."""

import copy
import json
import random
import re

import numpy as np
import pytest
import torch
from torch import nn

from utils.tests.validation.zoo import (
    BLOCK,
    GOOD,
    GPT,
    AlwaysDropout,
    BatchSecond,
    C,
    ContextFree,
    DeadReLU,
    NaN,
    NoGradientToBlock,
    Probabilities,
    Raises,
    Transposed,
    Tuple,
    V,
    WithBatchNorm,
    caching,
    exploding,
    zero_init,
)
from utils.validation import tier1
from utils.validation.tier1 import CHECKS, run_tier1


@pytest.fixture(autouse=True)
def _a_busy_machine_changes_nothing(monkeypatch):
    monkeypatch.setattr(tier1, "LEARN_SECONDS", 120.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models: threads would only wait for each other
    yield
    torch.set_num_threads(threads)


BAD = {
    "no causal mask": (
        lambda: GPT(mask="none"),
        "causality",
        "position 0 is the first .* up to 31 ahead",
        "mask is missing",
    ),
    "mask off by one": (
        lambda: GPT(mask="ahead", layers=1),
        "causality",
        "up to 1 ahead",
        "off by one.*diagonal=0",
    ),
    "detached block": (
        NoGradientToBlock,
        "gradients",
        r"cut off from the gradient: blocks\.0\.ln1",
        "detach",
    ),
    "NaN": (
        NaN,
        "shapes",
        r"NaN or infinite; first in the output of blocks\.1\.mlp\.1 \(Root\)",
        "square root",
    ),
    "batch norm": (
        WithBatchNorm,
        "batch independence",
        "training mode; batch normalisation: norm",
        "LayerNorm",
    ),
    "mixes the batch": (BatchSecond, "batch independence", "evaluation mode|training mode", "dimension 0"),
    "context-free": (ContextFree, "context", "moved no later logits", "lookup table"),
    "transposed": (Transposed, "shapes", r"returned \(.*\), expected \(.*64\)", "swapped.*transpose"),
    "wrong vocabulary": (
        lambda: GPT(vocab=50),
        "shapes",
        r"returned \(1, 1, 50\)",
        "gives 50 scores .* 64 tokens",
    ),
    "dropout in eval": (AlwaysDropout, "determinism", "eval mode: logits differ", "training=self.training"),
    "exploding": (exploding, "initialisation", "exploding", "std 0.02"),
    "few positions": (
        lambda: GPT(block=10),
        "shapes",
        r"IndexError.*zoo.py:\d+ in hidden: x = ",
        "block_size = 32",
    ),
    "raises": (
        Raises,
        "shapes",
        r"RuntimeError: the left .* is loose \(at zoo.py:\d+ in forward",
        "Open that line",
    ),
    "tuple": (Tuple, "shapes", r"returns a tuple, expected a tensor \(B, T, V\)", "logits alone"),
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


def test_a_softmax_at_the_end_is_named_and_barely_learns():
    failed = by_status(run(Probabilities), "fail")
    assert list(failed) == ["stability", "learning"]
    assert "probabilities" in failed["stability"].measured
    assert "Drop the softmax" in failed["stability"].advice


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
    assert "starts at zero" in warned["gradients"].measured
    assert "deliberate" in warned["gradients"].advice
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


def test_one_crashing_check_does_not_stop_the_others():
    class NoTraining(GPT):
        def forward(self, idx):
            if self.training:
                raise ValueError("no training today")
            return super().forward(idx)

    report = run(NoTraining)
    failed = by_status(report, "fail")
    assert {"gradients", "learning"} <= set(failed)
    assert "shapes" in by_status(report, "pass")
    assert "ValueError: no training today (at test_tier1.py:" in failed["gradients"].measured


def test_too_little_time_is_no_verdict_on_learning(monkeypatch):
    monkeypatch.setattr(tier1, "LEARN_SECONDS", 0.0)
    report = run(GPT)
    assert "time was up" in by_status(report, "skip")["learning"].measured
    assert report.verdict == "sound"


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
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.head.weight.grad is grad
    assert torch.equal(grad, kept)
    assert all(p.grad is None for name, p in model.named_parameters() if name != "head.weight")
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["tok.weight"]
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.equal(draws[0], torch.get_rng_state())
    assert np.array_equal(draws[1], np.random.get_state()[1])
    assert draws[2] == random.getstate()


def test_the_same_seed_measures_the_same():
    def measure(seed):
        report = run(lambda: GPT(p=0.1), seed=seed)
        return {c.name: (c.status, c.values) for c in report.checks if c.name not in ("memory", "speed")}

    assert measure(3) == measure(3) != measure(4)


def test_tiny_limits_and_wrong_requests():
    report = run_tier1(GPT(), V, 1)
    assert not by_status(report, "fail"), str(report)
    assert set(by_status(report, "skip")) == {"causality", "context"}
    with pytest.raises(TypeError, match="must be a torch.nn.Module; got function".replace(".", r"\.")):
        run_tier1(lambda ids: ids, V, BLOCK)
    with pytest.raises(ValueError, match="vocab_size >= 2"):
        run_tier1(GPT(), 1, BLOCK)
