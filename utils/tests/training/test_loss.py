"""Losses are sums over counted tokens."""

import math

import pytest
import torch
import torch.nn.functional as F

from utils.training.loss import IGNORE, count_correct, perplexity, token_loss


def test_sum_over_counted_tokens_equals_the_textbook():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    labels[0, :3] = IGNORE
    total, count = token_loss(logits, labels)
    by_hand = -sum(
        F.log_softmax(logits[b, t], -1)[labels[b, t]].item()
        for b in range(3)
        for t in range(5)
        if labels[b, t] != IGNORE
    )
    assert count == 12
    assert total.item() == pytest.approx(by_hand, rel=1e-5)


def test_ignored_positions_send_no_gradient():
    logits = torch.randn(1, 4, 7, requires_grad=True)
    labels = torch.tensor([[1, IGNORE, 2, IGNORE]])
    token_loss(logits, labels)[0].backward()
    assert logits.grad[0, [1, 3]].abs().max() == 0
    assert logits.grad[0, [0, 2]].abs().min() > 0


def test_bf16_logits_are_summed_in_fp32():
    logits = torch.zeros(1, 4096, 64, dtype=torch.bfloat16)
    total, _ = token_loss(logits, torch.zeros(1, 4096, dtype=torch.long))
    assert total.item() == pytest.approx(4096 * math.log(64), rel=1e-4)


def test_a_model_that_copies_its_input_is_not_accurate():
    ids = torch.arange(10)[None]  # labels are shifted by one: copying is always wrong
    copy = F.one_hot(ids[:, :-1], 10).float()
    assert count_correct(copy, ids[:, 1:]) == (0, 9)


def test_classes_of_texts_are_counted_like_tokens():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, IGNORE, 2])
    total, count = token_loss(logits, labels)
    assert count == 4
    assert total.item() == pytest.approx(F.cross_entropy(logits, labels, reduction="mean").item() * 4, rel=1e-6)
    assert count_correct(F.one_hot(torch.tensor([0, 2, 0, 1, 2]), 3).float(), labels) == (3, 4)


@pytest.mark.parametrize("shape", [(2, 4, 7), (3, 5)])
def test_where_nothing_counts_loss_and_gradient_are_zero(shape: tuple[int, ...]):
    logits = torch.randn(shape, requires_grad=True)
    total, count = token_loss(logits, torch.full(shape[:-1], IGNORE))
    total.backward()
    assert (total.item(), int(count)) == (0.0, 0)
    assert logits.grad.abs().max() == 0


def test_perplexity_is_clipped():
    assert perplexity(math.log(10)) == pytest.approx(10)
    assert perplexity(1e9) == perplexity(100) == math.exp(100)
