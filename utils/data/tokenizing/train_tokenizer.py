"""Vocabularies made from text: char, byte, bpe, wordpiece, unigram; knows nothing of documents, chats or models.

All five give every UTF-8 text back exactly (char: every text of characters it saw). The three that are trained work
on bytes (Radford et al. 2019, GPT-2): a text is cut into words, numbers and runs of signs, each with the space before
it, and the 256 bytes are always tokens, so nothing is unknown to them.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from utils.data.tokenizing.text_pieces import pieces, without_surrogates
from utils.data.tokenizing.train_unigram import learn_unigram

KINDS = ("char", "byte", "bpe", "wordpiece", "unigram")
TRAINED = KINDS[2:]
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what a char tokenizer makes of a character it never saw
END = "<|endoftext|>"
LONGEST_WORD = 64  # bytes; a longer run without spaces is cut, so that no text takes minutes


def train_backend(kind: str, texts: Iterable[str], vocab_size: int = 0, special_tokens: Sequence[str] = ()) -> Backend:
    """The library's tokenizer of this kind for these texts. Arguments and errors as in `build_tokenizer`."""
    if kind not in KINDS:
        raise ValueError(f"data.tokenizer={kind} cannot be trained: choose one of {', '.join(KINDS)}")
    if kind == "byte":
        return byte_level(models.BPE(byte_vocabulary(), []), use_regex=False)
    if kind == "char":
        return _char(chain(texts, special_tokens))
    special = list(dict.fromkeys([END, *special_tokens]))
    for token in special:
        _check_special(token)
    if not vocab_size:
        texts = list(texts)
        vocab_size = suggest_vocab_size(sum(map(len, texts)))
    least = 256 + len(special)
    if vocab_size < least:
        raise ValueError(
            f"data.vocab_size={vocab_size} is too small for a {kind} tokenizer: {least} or more (256 bytes and "
            f"{len(special)} special tokens), or 0 for what suits the text"
        )
    parts = (part for text in texts for part in _clean_pieces(text))
    train: dict[str, Callable[[Iterator[str], int, list[str]], Backend]] = {
        "bpe": _bpe, "wordpiece": _wordpiece, "unigram": _unigram,
    }  # fmt: skip
    return train[kind](parts, vocab_size, special)


def suggest_vocab_size(characters: int) -> int:
    """A vocabulary that suits a text of so many characters: a multiple of 64, from 512 to 65,536.

    Different words grow about as the square root of a text (Heaps' law), and a token must be seen often to be learned.
    At 2 x the root, on 0.5 to 2.3 million characters of WikiText and Shakespeare, four of five tokens of a bpe stand in
    the text ten times or more; with 4 x it is three of four, and their rows cost twice as much.
    """
    return min(65_536, max(512, round(2 * math.sqrt(characters) / 64) * 64))


def byte_level(model: models.Model, use_regex: bool = True) -> Backend:
    """A tokenizer on bytes around a model; with `use_regex`, no token reaches over the end of a word."""
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    return backend


def _char(texts: Iterable[str]) -> Backend:
    seen = {UNKNOWN}
    for text in texts:
        seen.update(without_surrogates(text))
    vocabulary = {character: i for i, character in enumerate(sorted(seen))}
    backend = Backend(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def _bpe(parts: Iterator[str], vocab_size: int, special: list[str]) -> Backend:
    backend = _short_words(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(parts, trainer)
    # Merging is fast on words of any length: the cut was only for training.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return backend


def _wordpiece(parts: Iterator[str], vocab_size: int, special: list[str]) -> Backend:
    # BERT marks the pieces inside a word with ##. Here the space before a word is part of it and marks its start, as
    # in GPT-2, so no mark is needed: no text can look like one, and each of the 256 bytes is one token, not two.
    backend = _short_words(models.WordPiece(unk_token=special[0]))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        continuing_subword_prefix="",
    )
    backend.train_from_iterator(parts, trainer)
    return backend


def _unigram(parts: Iterator[str], vocab_size: int, special: list[str]) -> Backend:
    backend = _short_words(models.Unigram())
    learned = learn_unigram(list(parts), backend.pre_tokenizer, vocab_size - len(special))
    # The library numbers the tokens in this order. No text reaches the special ones: a word never contains one.
    backend.model = models.Unigram([*((token, 0.0) for token in special), *learned])
    backend.add_special_tokens(special)
    return backend


def _short_words(model: models.Model) -> Backend:
    """A tokenizer on bytes whose words have at most LONGEST_WORD bytes."""
    backend = byte_level(model)
    cut = pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{LONGEST_WORD}}}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, cut])
    return backend


def _check_special(token: str) -> None:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str(token)
    if len(words) < 2 or not token.isascii() or not token.isprintable():
        raise ValueError(
            f"special token {token!r} could be taken for ordinary text: write it with brackets, as in <|name|>"
        )


def _clean_pieces(text: str) -> Iterator[str]:
    for part in pieces(text):
        try:
            part.encode()
            yield part
        except UnicodeEncodeError:
            yield without_surrogates(part)


@cache
def byte_vocabulary() -> dict[str, int]:
    """The value of each byte by the character that stands for it."""
    # The library writes bytes as printable characters: those that are printable as themselves, the
    # other 68 as the characters from 256 on (Radford et al. 2019, GPT-2).
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    other = (chr(256 + i) for i in range(256 - len(printable)))
    return {chr(byte) if byte in printable else next(other): byte for byte in range(256)}
