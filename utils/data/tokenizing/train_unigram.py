"""A unigram vocabulary learned from words (Kudo 2018, https://arxiv.org/abs/1804.10959); knows nothing of files.

The library's own trainer adds numbers in an order that changes from run to run, so the same text gives another
vocabulary each time, and a worse one. This one starts from the merges of a BPE instead of all substrings, counts only
the best way to cut each word instead of all ways, and is the same on every run.
"""

import math
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

WORDS = 200_000  # different words that are looked at, the most frequent ones
LONGEST = 16  # bytes of one token
SEEDS = 2  # tokens to start from, for each that stays
KEPT = 0.75  # share of the tokens that stays in one round
SETTLE = 2  # times the scores are counted anew in each round
RARE = 0.25  # how often a token that no word uses is taken to be used


def learn_unigram(texts: list[str], words: pre_tokenizers.PreTokenizer, size: int) -> list[tuple[str, float]]:
    """Tokens with their log-probabilities, best first: the 256 bytes and up to `size - 256` more.

    `words` cuts a text into words of byte-level characters.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    found, counts = _count_words(texts, words)
    # A start that needs no counts: the earlier a merge was made, the more frequent it is (Zipf's law).
    scores = {token: -math.log(rank + 10) for rank, token in enumerate(_seeds(texts, words, size))}
    while True:
        for _ in range(SETTLE):
            used = _count_tokens(found, counts, scores)
            total = sum(used.values())
            scores = {token: math.log(max(n, RARE) / max(total, 1)) for token, n in used.items()}
        if len(scores) <= size:
            return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        # What the text would cost more if a token were gone and its own parts did its work.
        worth = {t: n * (scores[t] - _without(t, scores)) for t, n in used.items() if len(t) > 1}
        room = max(size, int(KEPT * len(scores))) - len(alphabet)
        kept = sorted(worth, key=lambda token: (-worth[token], token))[:room]
        scores = {token: scores[token] for token in (*alphabet, *kept)}


def _count_words(texts: list[str], words: pre_tokenizers.PreTokenizer) -> tuple[list[str], np.ndarray]:
    backend = Backend(models.WordLevel(unk_token=""))
    backend.pre_tokenizer = words
    backend.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=WORDS + 1, special_tokens=[""], show_progress=False)
    )
    counts = np.zeros(backend.get_vocab_size(), dtype=np.int64)
    for encoded in _encoded(backend, texts, 16):
        counts += np.bincount(np.concatenate(encoded), minlength=len(counts))
    vocabulary = backend.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)[1:], counts[1:]


def _seeds(texts: list[str], words: pre_tokenizers.PreTokenizer, size: int) -> list[str]:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = words
    trainer = trainers.BpeTrainer(
        vocab_size=256 + SEEDS * size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    vocabulary = backend.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _count_tokens(words: list[str], counts: np.ndarray, scores: dict[str, float]) -> dict[str, float]:
    """How often each token stands in the words, each cut the most probable way."""
    backend = Backend(models.Unigram(list(scores.items())))
    used, start = np.zeros(len(scores)), 0
    for encoded in _encoded(backend, words, 4096):
        times = np.repeat(counts[start : start + len(encoded)], [len(ids) for ids in encoded])
        used += np.bincount(np.concatenate(encoded), weights=times, minlength=len(used))
        start += len(encoded)
    return dict(zip(scores, used.tolist(), strict=True))


def _encoded(backend: Backend, texts: list[str], together: int) -> Iterator[list[np.ndarray]]:
    for i in range(0, len(texts), together):
        yield [np.array(e.ids, dtype=np.int64) for e in backend.encode_batch_fast(texts[i : i + together])]


def _without(token: str, scores: dict[str, float]) -> float:
    """The score of the best way to write a token with others."""
    best = [0.0]  # best[j]: of its first j bytes
    for j in range(1, len(token) + 1):
        starts = (i for i in range(j) if j - i < len(token) and token[i:j] in scores)
        best.append(max(best[i] + scores[token[i:j]] for i in starts))
    return best[-1]
