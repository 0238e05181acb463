"""Losses are sums over counted tokens."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from utils.training.loss import IGNORE, count_correct, linear_loss, perplexity, token_loss, training_loss


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


def case(rows: int, channels: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Hidden states (2, rows / 2, C), the output layer's weight (V, C), and labels of which some are ignored."""
    torch.manual_seed(rows + vocabulary)
    hidden = torch.randn(2, rows // 2, channels).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, channels) * 0.3).to(dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (2, rows // 2))
    labels[0, ::5] = IGNORE
    return hidden, weight, labels


def differentiated(loss, hidden: torch.Tensor, weight: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
    """A loss and its gradients, with a factor as the trainer has it."""
    hidden.grad = weight.grad = None
    (loss / 7).backward()
    return loss.item(), hidden.grad, weight.grad


@pytest.mark.parametrize(
    ("rows", "vocabulary", "chunk"), [(60, 65, 65 * 7), (60, 65, 1), (60, 65, 0), (24, 50304, 50304 * 5)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_chunks_give_the_textbook_s_loss_and_gradients(rows: int, vocabulary: int, chunk: int, smoothing: float):
    hidden, weight, labels = case(rows, 16, vocabulary)

    def textbook(hidden: torch.Tensor, weight: torch.Tensor, smoothing: float) -> torch.Tensor:
        settings = {"ignore_index": IGNORE, "reduction": "sum", "label_smoothing": smoothing}
        return F.cross_entropy(F.linear(hidden, weight).flatten(0, -2), labels.flatten(), **settings)

    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    truth = differentiated(textbook(*exact, smoothing), *exact)
    plain = differentiated(textbook(hidden, weight, smoothing), hidden, weight)
    part, extra = linear_loss(hidden, weight, labels, smoothing, chunk=chunk)
    found = differentiated(part + extra, hidden, weight)
    assert part.item() == pytest.approx(textbook(*exact, 0.0).item(), rel=1e-6)  # without the smoothing
    assert found[0] == pytest.approx(truth[0], rel=1e-6)
    for mine, theirs, true in zip(found[1:], plain[1:], truth[1:], strict=True):
        # No further from the truth than fp32 itself is, but for sums in another order.
        assert (mine - true).norm() <= 1.5 * (theirs - true).norm() + 2e-7 * true.norm()
    assert found[1][0, ::5].abs().max() == 0


@pytest.mark.parametrize("chunk", [0, 70, 65 * 9])
def test_z_loss_is_the_squared_log_of_the_denominator(chunk: int):
    hidden, weight, labels = case(60, 16, 65)
    logits, counted = F.linear(hidden, weight), labels != IGNORE
    z = 0.01 * (logits.logsumexp(-1).square() * counted).sum()
    wanted = differentiated(token_loss(logits, labels)[0] + z, hidden, weight)
    part, extra = linear_loss(hidden, weight, labels, 0.0, 0.01, chunk)
    assert extra.item() == pytest.approx(z.item(), rel=1e-5)
    found = differentiated(part + extra, hidden, weight)
    for mine, theirs in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_logits_alone_give_the_same_as_their_layer():
    hidden, weight, labels = case(60, 16, 65)
    with torch.no_grad():
        both = training_loss(F.linear(hidden, weight), labels, 0.1, 0.01)
        torch.testing.assert_close(both, linear_loss(hidden, weight, labels, 0.1, 0.01, chunk=500))


def test_bf16_chunks_are_as_near_to_the_truth_as_plain_bf16():
    hidden, weight, labels = case(96, 32, 500, torch.bfloat16)
    exact = [t.detach().float().requires_grad_() for t in (hidden, weight)]
    truth = differentiated(training_loss(F.linear(*exact), labels)[0], *exact)
    plain = differentiated(training_loss(F.linear(hidden, weight), labels)[0], hidden, weight)
    found = differentiated(sum(linear_loss(hidden, weight, labels, chunk=500 * 10)), hidden, weight)
    assert found[0] == pytest.approx(truth[0], rel=2e-3)
    for mine, theirs, true in zip(found[1:], plain[1:], truth[1:], strict=True):
        assert mine.dtype == torch.bfloat16
        # A bf16 number has 8 bits: 2^-8 of its size, and here of a sum of such products.
        assert (mine.float() - true).norm() / true.norm() < 8e-3
        assert (mine.float() - true).norm() < 1.2 * (theirs.float() - true).norm()


def test_only_what_is_trained_gets_a_gradient_and_only_once():
    hidden, weight, labels = case(60, 16, 65)
    wanted = differentiated(sum(linear_loss(hidden, weight, labels)), hidden, weight)[1]
    loss = sum(linear_loss(hidden, weight.detach(), labels, chunk=500))
    hidden.grad = None
    (loss / 7).backward(retain_graph=True)
    torch.testing.assert_close(hidden.grad, wanted, rtol=1e-5, atol=2e-7)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


def test_autocast_chooses_the_dtype_of_the_products():
    hidden, weight, labels = case(60, 16, 65)
    with torch.autocast("cpu", torch.bfloat16):
        plain = differentiated(sum(linear_loss(hidden, weight, labels)), hidden, weight)
        found = differentiated(sum(linear_loss(hidden, weight, labels, chunk=500)), hidden, weight)
    exact = differentiated(sum(linear_loss(hidden, weight, labels, chunk=500)), hidden, weight)
    assert found[0] == pytest.approx(plain[0], rel=1e-4)
    assert found[0] != exact[0]
    assert found[1].dtype == torch.float32
    assert (found[2] - exact[2]).norm() / exact[2].norm() < 1e-2


def largest_allocation(work) -> int:
    """Bytes of the largest tensor made while `work` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    return max(event.self_cpu_memory_usage for event in found.events())


def test_the_logits_of_a_batch_never_exist():
    hidden, weight, labels = case(400, 8, 3000)
    whole = labels.numel() * len(weight) * 4
    chunked = largest_allocation(lambda: sum(linear_loss(hidden, weight, labels, chunk=3000 * 20)).backward())
    plain = largest_allocation(lambda: sum(linear_loss(hidden, weight, labels)).backward())
    assert plain >= whole
    assert chunked <= whole / 15
