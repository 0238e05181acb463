"""The byte-level BPE: lossless on anything, the same in pieces as in one go, words as tokens."""

import pytest
from tokenizers import Tokenizer as Backend

from utils.data.reading.stories import write_stories
from utils.data.tokenizing.tokenizer import PIECE, Tokenizer, build_tokenizer, pieces

NASTY = [
    "", " ", "\n\n \t", "😀 e\u0301 \0\r\n ", "don't  stop", "日本語のテキスト", "x" * 300,
    "a\u00a0b\u2028c", "\ufeff\ufffd",
]  # fmt: skip


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return build_tokenizer("bpe", write_stories(200_000), 1024)


@pytest.mark.parametrize("text", NASTY)
def test_round_trip_is_exact_on_text_it_never_saw(bpe: Tokenizer, text: str):
    assert bpe.decode(bpe.encode(text)) == text
    assert bpe.unknown_characters(text) == ""


def test_common_words_are_one_token_with_their_space(bpe: Tokenizer):
    assert [bpe.decode([i]) for i in bpe.encode("\nOnce upon a time, Lily")] == [
        "\n", "Once", " upon", " a", " time", ",", " Lily",
    ]  # fmt: skip


def test_the_vocabulary_is_bounded_and_holds_every_byte(bpe: Tokenizer):
    assert bpe.vocab_size == 1024
    assert build_tokenizer("bpe", "abab" * 9, 300).vocab_size <= 300
    assert build_tokenizer("bpe", "", 300).vocab_size == 257  # the bytes and <|endoftext|>


def test_the_same_text_makes_the_same_tokenizer():
    text = write_stories(50_000)
    assert build_tokenizer("bpe", text, 500).fingerprint == build_tokenizer("bpe", text, 500).fingerprint
    assert build_tokenizer("bpe", text, 500).fingerprint != build_tokenizer("bpe", text, 501).fingerprint


def test_pieces_leave_no_trace(bpe: Tokenizer):
    text = write_stories(3 * PIECE) + "two  spaces   and\n \n more " * 9000
    assert "".join(pieces(text)) == text
    assert max(map(len, pieces(text))) <= PIECE
    assert len(list(pieces(text))) > 5
    whole: Backend = bpe._backend
    assert bpe.encode(text) == whole.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", ["x" * (2 * PIECE + 5), " " * (2 * PIECE + 5), "ab " * PIECE])
def test_pieces_of_odd_texts_are_complete(bpe: Tokenizer, text: str):
    assert "".join(pieces(text)) == text
    assert bpe.decode(bpe.encode(text)) == text
