"""Examples of each task: right by construction, and a pure function of (seed, k)."""

import numpy as np
import pytest
import torch

from utils.data.batches import EvalBatches, TrainBatches
from utils.data.tasks import TaskBatches
from utils.data.tokenizer import tokens_needed

IDS = np.arange(1000, dtype=np.uint16) % 97
MASK = 97


def batches(task: str, seed: int = 1, fraction: float = 0.15, seq_len: int = 32, size: int = 8) -> TaskBatches:
    return TaskBatches(TrainBatches(IDS, seq_len, size, seed), task, seed, MASK, fraction)


def test_causal_is_what_the_blocks_are():
    plain = TrainBatches(IDS, 32, 8, 1)
    (ids,), labels = batches("causal").batch(3)
    assert torch.equal(ids, plain.batch(3)[0])
    assert torch.equal(labels, plain.batch(3)[1])


def test_masked_asks_for_the_tokens_it_hides():
    plain, _ = TrainBatches(IDS, 32, 8, 1).batch(3)
    (ids,), labels = batches("masked").batch(3)
    asked = labels != -100
    assert torch.equal(labels[asked], plain[asked])
    assert torch.equal(ids[~asked], plain[~asked])  # what is not asked for is shown
    assert (ids[~asked] != MASK).all()


def test_masked_hides_as_bert_does():
    size = 64
    hidden = TaskBatches(TrainBatches(IDS, 256, size, 1), "masked", 1, MASK, 0.15)
    plain = TrainBatches(IDS, 256, size, 1)
    (ids,), labels = hidden.batch(0)
    asked, shown = labels != -100, plain.batch(0)[0]
    n = int(asked.sum())
    assert n / asked.numel() == pytest.approx(0.15, abs=0.01)
    assert float((ids[asked] == MASK).float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float((ids[asked] == shown[asked]).float().mean()) == pytest.approx(0.1 + 0.1 / MASK, abs=0.03)


def test_every_masked_example_asks_something():
    _, labels = batches("masked", fraction=0.001).batch(0)
    assert (labels != -100).any(1).all()


@pytest.mark.parametrize("task", ["masked", "seq2seq"])
def test_a_batch_is_a_function_of_seed_and_number(task: str):
    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip((*a[0], a[1]), (*b[0], b[1]), strict=True))

    assert same(batches(task).batch(5), batches(task).batch(5))
    assert not same(batches(task).batch(5), batches(task).batch(6))
    assert not same(batches(task).batch(5), batches(task, seed=2).batch(5))


@pytest.mark.parametrize("seq_len", [1, 2, 7, 32])
def test_seq2seq_predicts_the_second_half_from_the_first(seq_len: int):
    plain, plain_labels = TrainBatches(IDS, seq_len, 8, 1).batch(2)
    (source, target), labels = batches("seq2seq", seq_len=seq_len).batch(2)
    half = max(1, seq_len // 2)
    assert torch.equal(source, plain[:, :half])
    assert torch.equal(target[:, 0], source[:, -1])  # the decoder starts where the source ends
    assert torch.equal(labels, plain_labels[:, half - 1 :])
    assert target.shape == labels.shape


def test_what_lies_behind_the_text_is_never_asked():
    val = TaskBatches(EvalBatches(IDS[:70], 32, 4), "masked", 0, MASK, 0.9)
    (_,), labels = val.batch(0)
    assert (labels[2, 6:] == -100).all()  # 70 tokens: the third example ends after 6
    assert len(val) == 1


def test_a_mask_takes_one_more_row():
    assert tokens_needed("masked", 97) == 98
    assert tokens_needed("causal", 97) == tokens_needed("seq2seq", 97) == 97
