"""How far one set of texts is from another: tokens, unseen ones, lengths, scripts; reads no files."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.data.looking.report import DataReport, Finding
from utils.data.looking.scripts import Characters, in_words

if TYPE_CHECKING:
    from utils.data.storing.tokens import Tokens
    from utils.data.tokenizing.tokenizer import Tokenizer

WORD = re.compile(r"\w+|[^\w\s]")
MOST_TOKENS = 2_000_000  # of each set; more changes no digit that matters
MOST_TEXT = 10_000_000  # characters of each set, for the same reason
BLOCK = 4096  # tokens that are taken in a row, where a sample must do
TOGETHER = 1000  # texts that are cut into tokens in one call
READ = 200_000  # tokens that are decoded to see their scripts
FEW = 20  # documents; below it their lengths say nothing
# Where a warning begins, by what was measured (see `drift`).
DIVERGENCE = {"tokens": 0.10, "words": 0.15}  # bits above chance
UNSEEN = {"tokens": 0.01, "words": 0.15}  # share of what is read
LENGTHS = 0.20  # Kolmogorov-Smirnov statistic
SCRIPTS = 0.05  # share of the letters that would have to change script


class DriftReport(DataReport):
    """What `drift` measured."""


@dataclass
class Sample:
    """One of the two sets: what it is made of, how long its documents are, how it is written."""

    counts: Counter[Any]  # how often each token id, or each word, comes
    lengths: np.ndarray  # (D,) tokens, or words, of each document
    unit: str  # "tokens" or "words"
    scripts: dict[str, float] = field(default_factory=dict)


Texts = Iterable[str]


def drift(
    reference: "Texts | np.ndarray | Tokens | Sample",
    other: "Texts | np.ndarray | Tokens | Sample",
    tokenizer: "Tokenizer | None" = None,
    title: str = "Drift",
) -> DriftReport:
    """How far `other` is from `reference`: each ids, or texts (by tokens if there is a tokenizer, else by words).

    The divergence of Jensen and Shannon (Lin 1991) is 0 for equal shares of tokens and 1 bit for none in common. Small
    sets differ by chance: what two draws from the mixture of both would give is told beside it.

    Bits above chance, measured on texts of a megabyte with a BPE of 1,024 tokens: two halves of Shakespeare's plays or
    of WikiText-2 0.01 to 0.02, the last twentieth against the rest 0.02 to 0.03, two parts of WikiText-2 0.01,
    Shakespeare against WikiText-2 0.32, half of a text in capitals 0.6. By words: 0.06 to 0.09, 0.07, 0.05, 0.46, 0.7.
    A warning begins between the two kinds. Lengths are compared by the statistic of Kolmogorov and Smirnov: the
    largest difference between the shares of documents up to some length; halves of one text 0.02 to 0.12.
    """
    a, b = _sample(reference, tokenizer), _sample(other, tokenizer)
    if a.unit != b.unit:
        raise ValueError(f"one set is {a.unit}, the other {b.unit}: give a tokenizer, or both as texts")
    if not a.counts or not b.counts:
        empty = "the reference" if not a.counts else "the other set"
        return DriftReport(title, [Finding(a.unit, "stop", 0.0, f"{empty} has no text to compare")])
    findings = [_shares(a, b), _unseen(a, b), _lengths(a, b)]
    findings += [_scripts(a, b)] if a.scripts and b.scripts else []
    return DriftReport(title, findings)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence of two histograms (K,), in bits: 0 for equal shares, 1 for nothing in common."""
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2

    def nats(x: np.ndarray) -> float:
        there = x > 0
        return float((x[there] * np.log(x[there] / middle[there])).sum())

    return max(0.0, (nats(p) + nats(q)) / 2 / math.log(2))


def by_chance(p: np.ndarray, q: np.ndarray) -> float:
    """The divergence of two draws, as large as `p` and `q`, from the mixture of both; the same each time."""
    draw, both = np.random.default_rng(0), (p + q) / (p.sum() + q.sum())
    return divergence(draw.multinomial(int(p.sum()), both), draw.multinomial(int(q.sum()), both))


def largest_gap(a: np.ndarray, b: np.ndarray) -> float:
    """The two-sample statistic of Kolmogorov and Smirnov: the largest gap between two cumulative shares, 0 to 1."""
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max())


def sample_texts(texts: Texts, tokenizer: "Tokenizer | None" = None) -> Sample:
    """The first MOST_TEXT characters of texts, a document each."""
    if isinstance(texts, str):
        texts = [texts]
    counts: Counter[Any] = Counter()
    lengths, characters, left, waiting = list[int](), Characters(), MOST_TEXT, list[str]()

    def count() -> None:
        for units in map(WORD.findall, waiting) if tokenizer is None else tokenizer.encode_batch(waiting):
            counts.update(units)
            lengths.append(len(units))
        waiting.clear()

    for text in texts:
        if left <= 0:
            break
        text = text[:left]
        left -= len(text)
        characters.add(text)
        waiting.append(text)
        if len(waiting) == TOGETHER:
            count()
    count()
    unit = "words" if tokenizer is None else "tokens"
    return Sample(counts, np.array(lengths), unit, characters.scripts())


def sample_tokens(ids: "np.ndarray | Tokens", tokenizer: "Tokenizer | None" = None) -> Sample:
    """At most MOST_TOKENS of some ids, in blocks spread evenly over them."""
    n = len(ids)
    if n <= MOST_TOKENS:
        parts = [np.asarray(ids[0:n])]
    else:
        starts = np.linspace(0, n - BLOCK, MOST_TOKENS // BLOCK).astype(np.int64)  # they do not overlap: n is larger
        parts = [np.asarray(ids[int(start) : int(start) + BLOCK]) for start in starts]
    number, times = np.unique(np.concatenate(parts), return_counts=True)
    documents = getattr(ids, "starts", None)
    lengths = np.array([n]) if documents is None else np.diff(documents)
    scripts: dict[str, float] = {}
    if tokenizer is not None and n:
        characters, each = Characters(), max(1, len(parts) * BLOCK // READ) if len(parts) > 1 else 1
        for part in islice(parts, 0, None, each):
            characters.add(tokenizer.decode(part[:READ].tolist()))
        scripts = characters.scripts()
    return Sample(Counter(dict(zip(number.tolist(), times.tolist(), strict=True))), lengths, "tokens", scripts)


def _sample(given: Any, tokenizer: "Tokenizer | None") -> Sample:
    if isinstance(given, Sample):
        return given
    is_ids = hasattr(given, "dtype") or hasattr(given, "starts")
    return sample_tokens(given, tokenizer) if is_ids else sample_texts(given, tokenizer)


def _shares(a: Sample, b: Sample) -> Finding:
    units = sorted(a.counts.keys() | b.counts.keys())
    p, q = (np.array([s.counts.get(unit, 0) for unit in units], np.float64) for s in (a, b))
    bits, chance = divergence(p, q), by_chance(p, q)
    above, limit = bits - chance, DIVERGENCE[a.unit]
    far = above > limit
    kind = "far apart" if far else "close" if above < limit / 2 else "somewhat apart"
    told = f"{kind}: the shares of {a.unit} differ by {bits:.3f} bits (0 = alike, 1 = nothing in common)"
    told += f"; by chance alone {chance:.3f}"
    advice = "The two are about different things or written differently: a loss on the one says little about the other."
    return Finding("shares", "warning" if far else "ok", bits, told, advice if far else "", {"by_chance": chance})


def _unseen(a: Sample, b: Sample) -> Finding:
    total = b.counts.total()
    times = sum(n for unit, n in b.counts.items() if unit not in a.counts)
    kinds = sum(unit not in a.counts for unit in b.counts)
    share, much = times / total, times / total > UNSEEN[a.unit]
    told = f"{100 * share:.2f} % of the {a.unit} ({kinds:,} of {len(b.counts):,} different ones) were never seen before"
    advice = "A model cannot have learned what it has never seen." if much else ""
    values = {"different": kinds, "of": len(b.counts)}
    return Finding("unseen", "warning" if much else "ok", share, told, advice, values)


def _lengths(a: Sample, b: Sample) -> Finding:
    n, m = len(a.lengths), len(b.lengths)
    if min(n, m) < FEW:
        return Finding("length", "ok", 0.0, f"too few documents to say ({n:,} and {m:,})", values={"documents": [n, m]})
    gap = largest_gap(a.lengths, b.lengths)
    chance = 1.63 * ((n + m) / (n * m)) ** 0.5  # one of a hundred pairs of equal sets is further apart
    far = gap > max(LENGTHS, chance)
    middle = [float(np.median(s.lengths)) for s in (a, b)]
    told = f"half of the documents have {middle[0]:,.0f} {a.unit} or more, of the other set {middle[1]:,.0f}"
    told += f"; their shares are up to {100 * gap:.0f} % apart"
    advice = "Documents of another length: see that both were cut in the same way (data.document)."
    values = {"medians": middle, "by_chance": chance}
    return Finding("length", "warning" if far else "ok", gap, told, advice if far else "", values)


def _scripts(a: Sample, b: Sample) -> Finding:
    names = a.scripts.keys() | b.scripts.keys()
    gap = sum(abs(a.scripts.get(name, 0.0) - b.scripts.get(name, 0.0)) for name in names) / 2
    far = gap > SCRIPTS
    told = f"letters: {in_words(a.scripts)}" + ("" if gap < 0.001 else f"; in the other set {in_words(b.scripts)}")
    advice = "Another script: another language, or text that was decoded wrongly."
    values = {"shares": [a.scripts, b.scripts]}
    return Finding("scripts", "warning" if far else "ok", gap, told, advice if far else "", values)
