"""What a model made for another task than the next token writes, and that ids no tokenizer knows are never drawn."""

import pytest
import torch
from torch import nn

from utils.config.schema import ModelShape
from utils.data.tokenizing.tokenizer import build_tokenizer
from utils.inference.generate import generate_ids, generate_text, stop_ids_of
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


def test_a_seq2seq_model_with_a_start_of_its_own_writes_on_from_that():
    model = Counts("seq2seq")
    model.start_id = 3
    assert list(generate_ids(model, [5, 1], 3, temperature=0, vocab_size=SIZE)) == [4, 5, 6]
    assert model.seen == [([5, 1], [3]), ([5, 1], [3, 4]), ([5, 1], [3, 4, 5])]


def test_a_tokenizers_own_mask_is_put_behind_the_text():
    model = Counts("masked")
    assert list(generate_ids(model, [0, 1], 2, temperature=0, vocab_size=SIZE, mask_id=6)) == [2, 3]
    assert model.seen[0] == ([0, 1, 6], None)


@pytest.mark.parametrize(("task", "written"), [("causal", [2, 3]), ("seq2seq", [2, 3]), ("masked", [2, 3, 4, 5])])
def test_the_end_of_the_text_ends_it_and_is_not_written(task: str, written: list[int]):
    model = Counts(task).train()
    ids = generate_ids(model, [1], 4, temperature=0, vocab_size=SIZE, stop_ids=frozenset({4, 7}), use_cache=False)
    assert list(ids) == written  # a masked model fills masks: it has no end
    assert model.training


def test_an_end_in_the_prompt_ends_nothing():
    ids = generate_ids(Counts("causal"), [4, 1], 9, temperature=0, vocab_size=SIZE, stop_ids=frozenset({4}))
    assert list(ids) == [2, 3]


class Letters:
    """A token is a letter; what follows them are special tokens."""

    vocab_size, end_id, special_tokens = SIZE, 5, {"<|end|>": 5, "<|im_end|>": 6}

    def encode(self, text: str) -> list[int]:
        return ["abcde".index(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join("abcde"[i] for i in ids)


def test_a_text_is_over_where_its_tokenizer_says():
    assert stop_ids_of(Letters()) == {5, 6}
    model = Counts("causal")
    assert "".join(generate_text(model, Letters(), "a", 100, temperature=0)) == "bcde"
    assert len(model.seen) == 5


def test_what_a_tokenizer_puts_before_a_text_it_puts_before_the_prompt():
    class Begins(Letters):
        prefix = (7,)

    model = Counts("causal")
    "".join(generate_text(model, Begins(), "ab", 1, temperature=0))
    assert model.seen == [([7, 0, 1], None)]
    with pytest.raises(ValueError, match="needs at least one token"):
        generate_text(model, Begins(), "", 1)


def test_what_a_seq2seq_model_reads_is_a_whole_text_with_its_end():
    class Ends(Letters):
        end_id, suffix = None, (5,)

    assert stop_ids_of(Ends()) == {5, 6}  # as in a BERT, whose texts end with [SEP] and no other token
    model = Counts("seq2seq")
    model.start_id = 2
    assert "".join(generate_text(model, Ends(), "ab", 9, temperature=0)) == "de"
    assert model.seen[0] == ([0, 1, 5], [2])
    model = Counts("causal")
    "".join(generate_text(model, Ends(), "ab", 1, temperature=0))
    assert model.seen == [([0, 1], None)]  # goes on with a text that has not ended


def test_a_real_tokenizer_ends_text_at_its_end_token():
    tokenizer = build_tokenizer("bpe", "a good day " * 200, 300)
    assert stop_ids_of(tokenizer) == {tokenizer.end_id}
    assert stop_ids_of(build_tokenizer("byte", "abc")) == frozenset()


def test_a_classifier_writes_nothing():
    with pytest.raises(ValueError, match="a classifier: it says what a text is, and writes none"):
        generate_ids(Counts("classification"), [1], 2)


def test_ids_without_a_token_are_never_drawn():
    torch.manual_seed(0)
    model = build_model("gpt", ModelShape(n_layer=1, n_head=1, n_embd=8, vocab_size=64, block_size=16))
    drawn = list(generate_ids(model, [1], 200, temperature=5.0, vocab_size=10))
    assert max(drawn) < 10
    assert len(set(drawn)) == 10
