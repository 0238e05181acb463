"""Tier 1 against a zoo: sound models of many designs pass, each broken one fails where it is broken."""

import copy
import json
import random
import re

import numpy as np
import pytest
import torch
from torch import nn

from utils.models.adapter import adapt
from utils.tests.validation.zoo import BLOCK, GPT, C, Raises, V, WithBatchNorm, caching, zero_init
from utils.tests.validation.zoo_bad import BAD
from utils.tests.validation.zoo_good import GOOD, WARNED, MoE, Seq2Seq
from utils.validation import gradients, masking, speed, subject
from utils.validation.figures import check_figure
from utils.validation.memory import _kept, bill_of
from utils.validation.run import describe, run_checks
from utils.validation.subject import Subject
from utils.validation.tier1 import CHECKS, run_tier1


@pytest.fixture(autouse=True)
def _a_busy_machine_changes_nothing(monkeypatch):
    monkeypatch.setattr(gradients, "LEARN_SECONDS", 120.0)
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models: threads would only wait for each other
    yield
    torch.set_num_threads(threads)


def run(make, **options):
    torch.manual_seed(1)
    return run_tier1(make(), V, BLOCK, **options)


def by_status(report, status):
    return {check.name: check for check in report.checks if check.status == status}


@pytest.mark.parametrize("name", GOOD)
def test_sound_models_do_not_fail(name):
    make, task = GOOD[name]
    report = run(make, task=task)
    assert not by_status(report, "fail"), str(report)
    assert set(by_status(report, "warn")) == WARNED.get(name, set()), str(report)
    assert set(by_status(report, "skip")) <= {"padding"}, str(report)
    assert all(check.why for check in report.checks)
    for check in report.checks:
        if check.figure:
            check_figure(check.figure)
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", BAD)
def test_broken_models_are_named_by_the_right_check(name):
    defect = BAD[name]
    report = run(defect.make, task=defect.task)
    found = {check.name: check for check in report.checks}[defect.check]
    assert found.status == defect.status, str(report)
    assert re.search(defect.measured, found.measured), found.measured
    assert re.search(defect.advice, found.advice), found.advice
    expected = {*defect.also, *([defect.check] if defect.status == "fail" else [])}
    assert set(by_status(report, "fail")) == expected, str(report)


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


def test_a_mask_shorter_than_the_block_is_found_where_only_short_texts_are_cheap(monkeypatch):
    monkeypatch.setitem(subject.RATE, "cpu", 3e5)  # so slow that the usual probes stop at 16 tokens
    found = by_status(run(lambda: GPT(mask="short")), "fail")["causality"]
    assert re.search("causal up to 16 tokens, not at 32: changing token 31 .* from position 16 on", found.measured)
    assert "does not cover" in found.advice
    assert "nor did 2 at 32" in by_status(run(GPT), "pass")["causality"].measured
    monkeypatch.setattr(masking, "PATIENCE", 0.0)
    assert "the full 32 would take too long" in by_status(run(GPT), "pass")["causality"].measured


def test_a_working_short_length_is_enough_for_the_other_checks():
    report = run(lambda: GPT(block=10))
    assert set(by_status(report, "pass")) == set(CHECKS) - {"shapes", "source"}
    skipped = by_status(run(Raises), "skip")
    assert set(skipped) == set(CHECKS) - {"shapes"}


def test_names_of_an_adapted_model_are_its_own():
    """The adapter's `inner.` is gone from words, numbers and pictures; the model's own `inner` stays."""

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = GPT()

        def forward(self, input_ids):
            return self.inner(input_ids)

    model = adapt(Wrapped(), {"vocab_size": V, "block_size": BLOCK}, "causal")
    found = {check.name: check for check in run_tier1(model, V, BLOCK).checks}
    assert "largest: inner.blocks.0.mlp.0.weight" in found["parameters"].measured
    assert found["gradients"].figure["labels"] == ["inner.blocks.0", "inner.blocks.1"]
    assert found["stability"].values["loudest"].count("inner") == 1


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
    monkeypatch.setattr(gradients, "LEARN_SECONDS", 0.0)
    report = run(GPT)
    assert "time was up" in by_status(report, "skip")["learning"].measured
    assert report.verdict == "sound"


def test_tied_weights_are_counted_once():
    model = GPT(tied=True)
    values = {check.name: check.values for check in run_tier1(model, V, BLOCK).checks}
    count = sum(p.numel() for p in model.parameters())
    assert (values["parameters"]["parameters"], values["parameters"]["tied"]) == (count, V * C)
    memory = values["memory"]
    assert memory["weights_mb"] == pytest.approx(4 * count / 1e6)
    assert memory["training_mb"] == pytest.approx(16 * count / 1e6 + memory["activations_mb"])


@pytest.mark.parametrize("name", ["gpt", "llama", "our bdh", "transformers BERT", "encoder-decoder"])
def test_memory_that_is_predicted_is_kept(name):
    make, task = GOOD[name]
    subject = Subject(make(), V, BLOCK, True, 0, task)
    CHECKS["shapes"](subject)
    bill = bill_of(subject)
    for batch, length in ((5, BLOCK), (3, 11)):
        assert bill.activations(batch, length) == pytest.approx(_kept(subject, batch, length), rel=0.15)
    assert bill.largest_batch(0.0, BLOCK) == 0
    batch = bill.largest_batch(1e9, BLOCK)
    assert bill.training(batch, BLOCK) <= 0.9e9 < bill.training(batch + 2, BLOCK)


def test_operations_are_those_of_the_products():
    model = GPT()
    values = {check.name: check.values for check in run_tier1(model, V, BLOCK).checks}["speed"]
    products = 2 * sum(p.numel() for n, p in model.named_parameters() if p.dim() > 1 and n[:3] not in ("tok", "pos"))
    attention = 2 * 4 * C * BLOCK  # per layer: scores and their use, each 2 C operations per pair
    assert values["forward_flops_per_token"] == products + attention


def test_checks_come_one_by_one_and_can_be_chosen():
    model = GPT()
    answers = run_checks(model, CHECKS, vocab_size=V, block_size=BLOCK, only=["causality", "memory"])
    assert next(answers).name == "causality"
    assert torch.is_grad_enabled()
    assert [check.name for check in answers] == ["memory"]
    with pytest.raises(ValueError, match="no check is called speeed: choose from shapes"):
        run_checks(model, CHECKS, vocab_size=V, block_size=BLOCK, only=["speeed"])
    with pytest.raises(ValueError, match="task=poetry is not known"):
        run_checks(model, CHECKS, vocab_size=V, block_size=BLOCK, task="poetry")


def test_an_error_in_a_later_tier_is_a_warning():
    def check_luck(subject):
        raise ValueError(f"no luck at {subject.length}")

    (answer,) = run_checks(GPT(), {"luck": check_luck}, vocab_size=V, block_size=BLOCK)
    assert (answer.name, answer.status) == ("luck", "warn")
    assert "could not be measured because ValueError: no luck at 32" in answer.measured


def test_a_model_describes_itself():
    assert describe(GOOD["our gpt"][0]()) == (V, BLOCK, "causal")
    assert describe(GOOD["transformers T5"][0]())[2] == "seq2seq"
    with pytest.raises(ValueError, match="give it `shape`"):
        describe(GPT())


def test_what_a_model_adds_to_its_loss_is_trained():
    model = MoE()
    subject = Subject(model, V, BLOCK, True, 0)
    ids = subject.tokens(2, 8)
    alone = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    assert subject.loss(ids, ids).item() == pytest.approx((alone + model.aux_loss).item())
    assert model.aux_loss > 0


def test_the_picture_of_a_leak_shows_it():
    make = {"sound": Seq2Seq, "broken": BAD["leaky decoder"].make}
    for word, leaks in (("sound", False), ("broken", True)):
        check = {c.name: c for c in run(make[word], task="seq2seq").checks}["causality"]
        (panel,) = check.figure["panels"]
        last = panel["rows"][-1]  # the last position was changed: only the last may move
        assert (max(last[:-1]) > -4) is leaks
        assert last[-1] > -4


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
    assert set(by_status(report, "skip")) == {"causality", "context", "padding"}
    with pytest.raises(TypeError, match="must be a torch.nn.Module; got function".replace(".", r"\.")):
        run_tier1(lambda ids: ids, V, BLOCK)
    with pytest.raises(ValueError, match="vocab_size >= 2"):
        run_tier1(GPT(), 1, BLOCK)
