"""What a model made for another task than the next token writes, and that ids no tokenizer knows are never drawn."""

import pytest
import torch
from torch import nn

from utils.config.schema import ModelShape
from utils.inference.generate import generate_ids
from utils.models.registry import build_model

SIZE = 8


class Limits:
    vocab_size, block_size = SIZE + 1, 6


class Counts(nn.Module):
    """Answers with the token after the last one it is shown, and remembers what it was shown."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task, self.shape, self.seen = task, Limits, []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, ids, target=None):
        self.seen.append((ids[0].tolist(), None if target is None else target[0].tolist()))
        shown = target if target is not None else ids[:, :-1] if self.task == "masked" else ids
        logits = torch.zeros(1, (ids if target is None else target).shape[1], SIZE + 1)
        logits[:, -1, (shown[0, -1] + 1) % (SIZE + 1)] = 9
        return logits


def test_a_masked_model_fills_the_place_behind_the_text():
    model = Counts("masked")
    assert list(generate_ids(model, [0, 1], 3, temperature=0, vocab_size=SIZE)) == [2, 3, 4]
    assert model.seen[0] == ([0, 1, SIZE], None)  # the mask is the first id the tokenizer does not have
    assert model.seen[2] == ([0, 1, 2, 3, SIZE], None)


def test_a_masked_model_sees_no_more_than_it_can():
    model = Counts("masked")
    list(generate_ids(model, [0, 1], 8, temperature=0, vocab_size=SIZE))
    assert max(len(ids) for ids, _ in model.seen) == Limits.block_size


def test_a_seq2seq_model_reads_the_prompt_and_writes_on_from_its_end():
    model = Counts("seq2seq")
    assert list(generate_ids(model, [5, 1], 2, temperature=0, vocab_size=SIZE)) == [2, 3]
    assert model.seen == [([5, 1], [1]), ([5, 1], [1, 2])]


def test_a_classifier_writes_nothing():
    with pytest.raises(ValueError, match="a classifier: it says what a text is, and writes none"):
        generate_ids(Counts("classification"), [1], 2)


def test_ids_without_a_token_are_never_drawn():
    torch.manual_seed(0)
    model = build_model("gpt", ModelShape(n_layer=1, n_head=1, n_embd=8, vocab_size=64, block_size=16))
    drawn = list(generate_ids(model, [1], 200, temperature=5.0, vocab_size=10))
    assert max(drawn) < 10
    assert len(set(drawn)) == 10
