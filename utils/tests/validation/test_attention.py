"""Captured attention equals what was computed, and heads built to look somewhere are seen to look there."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from utils.tests.validation.zoo import BLOCK, GOOD, GPT, Llama, V
from utils.validation.attention import AttentionCapture, attention_weights, capture, check_attention, heads
from utils.validation.figures import check_figure
from utils.validation.subject import Subject


def subject_of(model: nn.Module, task: str = "causal", vocab: int = V, block: int = BLOCK) -> Subject:
    return Subject(model, vocab, block, None, 0, task)


@pytest.mark.parametrize("case", ["plain", "causal", "bool mask", "float mask", "scale", "grouped"])
def test_weights_are_those_of_sdpa(case):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    options = {
        "causal": {"is_causal": True},
        "bool mask": {"attn_mask": torch.ones(6, 6, dtype=torch.bool).tril(1)},
        "float mask": {"attn_mask": torch.randn(2, 1, 6, 6)},
        "scale": {"scale": 0.7},
        "grouped": {"enable_gqa": True, "is_causal": True},
    }.get(case, {})
    if case == "grouped":
        k, v = k[:, :2], v[:, :2]
    weights = attention_weights(q, k, v, **options)
    seen_by = v.repeat_interleave(2, 1) if case == "grouped" else v
    assert torch.allclose(weights @ seen_by, F.scaled_dot_product_attention(q, k, v, **options), atol=1e-5)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 6))


def test_sdpa_is_caught_whatever_the_import():
    q = torch.randn(1, 2, 5, 4)
    with AttentionCapture(1, {5}) as seen:
        scaled_dot_product_attention(q, q, q, is_causal=True)
        F.scaled_dot_product_attention(query=q, key=q, value=q, is_causal=True)
        torch.nn.functional.scaled_dot_product_attention(q, q, q, None, 0.0, True)
    assert len(seen.found) == 3
    for _, weights in seen.found:
        assert torch.equal(weights, attention_weights(q, q, is_causal=True))
    with AttentionCapture(1, {5}) as seen:
        pass
    scaled_dot_product_attention(q, q, q)
    assert seen.found == []


@pytest.mark.parametrize("wanted", [True, False])
def test_multihead_attention_gives_its_own_weights(wanted):
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(16, 4, batch_first=True).eval(), torch.randn(2, 5, 16)
    out, weights = layer(x, x, x, average_attn_weights=False)
    with torch.no_grad(), AttentionCapture(2, {5}) as seen:
        again, given = layer(x, x, x, need_weights=wanted)
    assert torch.allclose(again, out, atol=1e-6)
    assert (given is None) != wanted
    assert given is None or torch.allclose(given, weights.mean(1), atol=1e-6)
    assert len(seen.found) == 1
    assert torch.allclose(seen.found[0][1], weights, atol=1e-6)


def test_a_softmax_by_hand_is_caught_and_the_output_layer_is_not():
    scores = torch.randn(2, 4, 5, 5)
    with AttentionCapture(2, {5}) as seen:
        by_hand = [scores.softmax(-1), F.softmax(scores, dim=-1), torch.softmax(scores, dim=3)]
        scores.softmax(1)
        torch.randn(2, 5, 64).softmax(-1)
        torch.randn(2, 64).softmax(-1)
        flat = scores.flatten(0, 1).softmax(-1)  # (B * H, T, T), as with torch.bmm
    assert len(seen.found) == 4
    for (_, weights), mine in zip(seen.found, [*by_hand, flat.view(2, 4, 5, 5)], strict=True):
        assert torch.equal(weights, mine)


def test_heads_are_named_after_their_modules():
    found = capture(subject_of(GPT()), torch.arange(1, 11).view(1, 10))
    assert [(name, tuple(w.shape)) for name, w in found] == [
        ("blocks.0.attn", (1, 4, 10, 10)),
        ("blocks.1.attn", (1, 4, 10, 10)),
    ]
    model = Llama()
    before = model(torch.arange(1, 11).view(1, 10))
    found = capture(subject_of(model), torch.arange(1, 11).view(1, 10))
    assert [name for name, _ in found] == ["layers.0", "layers.1"]
    assert torch.equal(model(torch.arange(1, 11).view(1, 10)), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class LooksAt(nn.Module):
    """One head that looks, sharply, at a given place."""

    def __init__(self, where: str):
        super().__init__()
        self.where, self.head = where, nn.Linear(V, V)

    def forward(self, ids):
        T = ids.shape[1]
        place, tokens = torch.arange(T), F.one_hot(ids, V).float()
        scores = torch.zeros(T, T)
        if self.where == "previous":
            scores[place[1:], place[:-1]] = 20.0
        elif self.where == "first":
            scores[:, 0] = 20.0
        elif self.where == "self":
            scores[place, place] = 20.0
        elif self.where == "induction":  # a key is the token before: who is looked for was followed by this one
            scores = tokens @ F.pad(tokens, (0, 0, 1, 0))[:, :-1].transpose(1, 2) * 20.0
        mask = torch.where(torch.ones(T, T).tril().bool(), scores, -math.inf)
        mask = mask[:, None] if mask.dim() == 3 else mask
        query = torch.zeros(len(ids), 1, T, 4)
        value = tokens[:, None]
        y = F.scaled_dot_product_attention(query, query, value, attn_mask=mask)
        return self.head(y[:, 0])


@pytest.mark.parametrize("where", ["previous", "first", "self", "induction", "even"])
def test_a_head_built_to_look_somewhere_is_recognised(where):
    check = check_attention(subject_of(LooksAt(where)))
    assert check.status == "pass"
    assert check.values["patterns"] == {where: 1}
    head = check.values["per_head"][0]
    if where == "even":
        assert head["entropy"] == pytest.approx(1.0, abs=1e-4)
        assert head["sparsity"] == 0
        assert "would not be using its attention" in check.measured
    else:
        assert head["scores"][where] > 0.95
        assert head["entropy"] < 0.6
    if where == "previous":
        assert head["distance"] == pytest.approx(1, abs=0.05)
    panel = check_figure(check.figure)["panels"][0]
    assert panel["title"] == f"L0 H0 {where}"
    assert len(panel["rows"]) == BLOCK


def test_numbers_of_a_known_map():
    weights = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    weights = weights.clone()
    visible = torch.where(torch.ones(4, 4).tril().bool(), weights.clamp_min(1e-9), 0)
    (head,) = heads([("a", visible.view(1, 1, 4, 4))])
    assert head.entropy == pytest.approx((1 + 0 + 1) / 3, abs=1e-4)  # the first row has no choice
    assert head.distance == pytest.approx((0.5 + 2 + 1.5) / 3, abs=1e-4)
    assert head.sparsity == pytest.approx(2 / 9)


def test_a_row_without_a_choice_is_no_defect():
    (head,) = heads([("a", torch.ones(1, 1, 1, 1))])
    assert head.pattern == "one token"


def test_nan_is_a_warning():
    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(4, V)

        def forward(self, ids):
            T = ids.shape[1]
            x = torch.randn(len(ids), 1, T, 4)
            scores = torch.full((T, T), -math.inf)
            return self.out((scores + x @ x.transpose(-2, -1)).softmax(-1) @ x)[:, 0]

    check = check_attention(subject_of(Closed()))
    assert check.status == "warn"
    assert "1 of 1 heads hold NaN" in check.measured
    assert "masked" in check.advice
    check_figure(check.figure)


def test_a_model_without_attention_says_so():
    check = check_attention(subject_of(GOOD["gru"]()))
    assert check.status == "skip"
    assert check.measured.startswith("not available, because no attention was seen")
    assert check_attention(subject_of(GPT(), block=3)).status == "skip"


def test_an_output_layer_as_wide_as_the_text_is_no_attention():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Embedding(32, 8), nn.Linear(8, 32))

        def forward(self, ids):
            return self.net(ids).softmax(-1)

    assert check_attention(subject_of(Twice(), vocab=32, block=32)).status == "skip"


def test_at_most_32_maps_are_drawn():
    check = check_attention(subject_of(GPT(layers=9)))
    assert check.values["heads"] == 36
    assert len(check_figure(check.figure)["panels"]) == 32
    assert "the 32 sharpest of 36 heads" in check.figure["title"]
