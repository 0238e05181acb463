"""Tier 2 against things whose answer is known: identities, linear models, a model that copies."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.config.schema import ModelShape
from utils.models.bdh import BDH
from utils.models.bdh_view import activations
from utils.tests.validation.zoo import BLOCK, GOOD, GPT, ContextFree, V
from utils.validation.attribution import (
    check_attribution,
    check_sensitivity,
    check_swap,
    divergence,
    integrated_gradients,
)
from utils.validation.figures import check_figure, draw
from utils.validation.observe import find_embedding, layer_outputs, stages, with_embedding
from utils.validation.report import Report
from utils.validation.representations import (
    check_logit_lens,
    check_outliers,
    check_representations,
    check_weight_ranks,
    effective_rank,
)
from utils.validation.subject import Subject
from utils.validation.tier2 import CHECKS, check_copying, check_neurons


@pytest.fixture(autouse=True)
def _same_draws():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def subject_of(model: nn.Module, task: str = "causal", vocab: int = V, block: int = BLOCK) -> Subject:
    return Subject(model, vocab, block, None, 0, task)


class Copier(nn.Module):
    """An induction head, written down: what followed this token last time comes next."""

    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(V, V)
        self.tok.weight.data = torch.eye(V)

    def forward(self, ids):
        x, T = self.tok(ids), ids.shape[1]
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        scores = 30.0 * x @ before.transpose(1, 2)
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        return 10.0 * scores.softmax(-1) @ x


def lively_gpt() -> nn.Module:
    """Weights large enough that tokens matter to each other."""
    model = GPT()
    for param in model.parameters():
        if param.dim() > 1:
            nn.init.normal_(param, std=0.3)
    return model


def test_effective_rank_of_known_matrices():
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.randn(9, 1) @ torch.randn(1, 5)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.diag(torch.tensor([1.0, 1, 1, 0, 0]))) == pytest.approx(3)
    assert effective_rank(torch.eye(4)[:, :3] * 1e-3) == pytest.approx(3)
    assert effective_rank(torch.zeros(3, 3)) == 0
    shares = torch.linalg.svdvals(matrix := torch.randn(12, 30))
    shares = shares / shares.sum()
    assert effective_rank(matrix) == pytest.approx(torch.exp(-(shares * shares.log()).sum()).item(), rel=1e-4)


def test_weight_ranks_name_the_collapsed_matrix():
    model = GPT()
    model.blocks[1].mlp[0].weight.data = torch.randn(128, 1) @ torch.randn(1, 32)
    check = check_weight_ranks(subject_of(model))
    assert check.status == "warn"
    assert check.measured.startswith("lowest blocks.1.mlp.0.weight: 1.0 of 32")
    assert check.figure["labels"][0] == "blocks.1.mlp.0.weight"
    assert check_weight_ranks(subject_of(GOOD["zero-init residuals"]())).status == "pass"


def test_a_row_that_is_repeated_on_purpose_is_no_collapse():
    model = GPT()
    model.decay = nn.Parameter(torch.arange(1.0, 17.0).log().repeat(32, 1))  # as in Mamba
    found = CHECKS["weight rank"](subject_of(model))
    assert found.status == "pass"
    assert "1 with one row repeated" in found.measured
    assert found.values["repeated"] == ["decay"]


def test_representations_that_collapse_are_seen():
    class Mean(GPT):
        def hidden(self, idx):
            x = self.tok(idx)
            for block in self.blocks:
                x = block(x)
            return self.ln(x)

    check = check_representations(subject_of(GPT()))
    assert (check.status, list(check.values["effective_rank"])) == ("pass", ["blocks.0", "blocks.1"])
    assert check.values["effective_rank"]["blocks.1"] > 20
    model = Mean()
    model.tok.weight.data = torch.randn(V, 1) @ torch.randn(1, 32)
    for block in model.blocks:
        for layer in (block.attn.out, block.mlp[2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    check = check_representations(subject_of(model))
    assert check.status == "warn"
    assert "look almost the same after blocks." in check.advice


def test_outliers_are_found_where_they_are():
    model = GPT()
    assert check_outliers(subject_of(model)).values["massive"] == []
    model.blocks[0].mlp[2].bias.data[11] = 5000.0
    check = check_outliers(subject_of(model))
    assert check.values["channel"]["blocks.0"] == 11
    assert check.values["massive"][0]["channels"] == [11]
    assert "massive activations in 2 layers, first blocks.0, channels 11" in check.measured


def test_integrated_gradients_are_exact_on_a_linear_model():
    weight, value, base = torch.randn(3, 5), torch.randn(3, 5), torch.randn(3, 5)
    given, gap = integrated_gradients(lambda x: (weight * x).sum() + 2.0, value, base)
    assert torch.allclose(given, weight * (value - base), atol=1e-5)
    assert gap < 1e-6


def test_integrated_gradients_are_complete_on_a_curved_one():
    value, base = torch.randn(8), torch.zeros(8)
    given, gap = integrated_gradients(lambda x: (x**3).sum() + x.exp().prod(), value, base)
    change = (value**3).sum() + value.exp().prod() - 1
    assert given.sum().item() == pytest.approx(change.item(), rel=1e-4)
    assert gap < 1e-4
    _, gap = integrated_gradients(lambda x: (x > 0.4).float().sum() + 0 * x.sum(), torch.ones(3), torch.zeros(3))
    assert gap == pytest.approx(1)  # a hard switch has no slope: nothing is attributed, and the gap tells


def test_attribution_finds_the_token_that_counts():
    class FirstOnly(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok, self.head = nn.Embedding(V, 16), nn.Linear(16, V)

        def forward(self, ids):
            x = self.tok(ids)
            return self.head(x[:, :1].expand_as(x))

    check = check_attribution(subject_of(FirstOnly()))
    assert check.status == "pass"
    assert (check.values["largest_at"], check.values["largest_share"]) == (0, pytest.approx(1))
    assert check.values["gap"] < 1e-4
    assert "token 0 of 0..31 counts most (100%)" in check.measured


def test_the_token_embedding_is_found_among_others():
    model, ids = GPT(), torch.randperm(V)[:10].view(1, 10)
    subject = subject_of(model)
    found = find_embedding(subject, ids)
    assert found.table is subject.model.tok.weight
    assert torch.equal(found.value, model.tok(ids))
    assert torch.allclose(with_embedding(subject, ids, found.value), model(ids), atol=1e-6)
    other = torch.randperm(V)[:10].view(1, 10)
    assert torch.allclose(with_embedding(subject, ids, model.tok(other)), model(other), atol=1e-6)


def test_a_model_without_embedding_says_so():
    class OneHot(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(V, V)

        def forward(self, ids):
            return self.net(F.one_hot(ids, V).float())

    for check in (check_attribution(subject_of(OneHot())), check_swap(subject_of(OneHot()))):
        assert check.status == "skip"
        assert check.measured.startswith("not available, because no embedding")
    assert check_sensitivity(subject_of(OneHot())).status == "pass"


def test_divergence_is_kl():
    a, b = torch.randn(4, 9), torch.randn(4, 9)
    mine = (a.softmax(-1) * (a.softmax(-1) / b.softmax(-1)).log()).sum(-1)
    assert torch.allclose(divergence(a, b).float(), mine, atol=1e-6)
    assert divergence(a, a + 3.0).max() < 1e-9


def test_sensitivity_is_zero_without_context_and_grows_with_it():
    check = check_sensitivity(subject_of(ContextFree()))
    assert check.values["kl"] == [0] * 4  # at 32 tokens, 1, 2 and 5 % come to one token or two
    assert check.values["top1_changed"] == [0] * 4
    check = check_sensitivity(subject_of(lively_gpt()))
    assert check.values["percent"] == sorted(check.values["percent"])
    assert check.values["kl"][-1] > check.values["kl"][0] > 0
    assert 0 < check.values["top1_changed"][-1] <= 1


def test_a_chosen_swap_beats_a_random_one():
    check = check_swap(subject_of(lively_gpt()))
    assert check.values["chosen_kl"] > check.values["random_kl"] > 0
    assert check.values["worst_kl"] == max(check.values["chosen_kl"], check.values["random_largest_kl"])
    assert check.values["place"] != BLOCK - 1
    assert check.values["from"] != check.values["to"]
    assert "looks at no other token" in check_swap(subject_of(ContextFree())).measured


def test_copying_is_seen_and_its_absence_too():
    check = check_copying(subject_of(Copier()))
    assert check.status == "pass"
    assert check.values["gain"] > 3
    assert check.values["second_time"] < 0.2
    assert "it copies" in check.measured
    losses = check.figure["series"][0]["y"]
    assert min(losses[: check.values["period"]]) > 3 > 0.2 > max(losses[check.values["period"] :])
    check = check_copying(subject_of(GPT()))
    assert abs(check.values["gain"]) < 0.1
    assert "it does not copy" in check.measured
    assert check_copying(subject_of(GPT(), task="masked")).status == "skip"


def test_logit_lens_reads_each_layer_through_the_norm_and_the_head():
    model = lively_gpt()
    subject = subject_of(model)
    check = check_logit_lens(subject)
    assert check.values["layers"] == ["blocks.0", "blocks.1"]
    assert check.values["agreement"][-1] == 1
    assert check.values["kl"][-1] == pytest.approx(0, abs=1e-9)
    subject = subject_of(model)  # the same draws
    ids = subject.tokens(1, BLOCK)
    first = layer_outputs(subject, ids, stages(subject))["blocks.0"]
    by_hand = divergence(model(ids), model.head(model.ln(first))).mean().item()
    assert check.values["kl"][0] == pytest.approx(by_hand, rel=1e-4)
    assert check_logit_lens(subject_of(GOOD["gru"]())).status == "skip"


@pytest.mark.parametrize("name", GOOD)
def test_every_view_of_every_sound_model(name):
    """Nothing warns, every figure can be drawn, every answer survives the trip as JSON, and the model is as it was."""
    model = GOOD[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    subject, checks = subject_of(model), []
    for label, ask in CHECKS.items():
        subject.reset()
        answer = ask(subject)
        if answer is None:
            continue
        checks.append(answer)
        assert answer.name == label
        assert answer.tier == 2
        assert len(answer.why) > 40
        assert answer.why == ask.why
        assert answer.status in ("pass", "skip"), answer
        assert answer.status == "pass" or answer.measured.startswith("not available, because")
    subject.close()
    report = Report(name, checks)
    again = Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert str(again) == str(report)
    for check in checks:
        assert check.figure is None or check_figure(check.figure)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())


def test_bdh_neurons():
    torch.manual_seed(0)
    model = BDH(ModelShape(n_layer=3, n_head=2, n_embd=16, n_hidden=128, block_size=BLOCK, vocab_size=V))
    subject = subject_of(model)
    check = check_neurons(subject)
    ids = subject_of(model).tokens(1, BLOCK)
    layers = activations(model, ids, top=4)
    assert check.values["share_both"] == [layer.share_both for layer in layers]
    assert check.values["loudest_of_last_token"][0] == layers[0].neurons[-1]
    assert [one["x"] for one in check.figure["series"]] == [[0, 1, 2]] * 3
    assert draw(check.figure).startswith(b"\x89PNG")
    assert check_neurons(subject_of(GPT())) is None


@pytest.mark.parametrize("block", [1, 2, 5])
def test_short_blocks_are_skipped_not_broken(block):
    for ask in CHECKS.values():
        answer = ask(subject_of(GPT(block=block), block=block))
        assert answer is None or answer.status in ("pass", "skip")
