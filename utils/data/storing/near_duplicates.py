"""Which documents are almost alike, by MinHash and LSH bands; knows nothing of sides, files or settings.

Broder, "On the resemblance and containment of documents" (1997): the smallest hash of two sets is the same with
probability J = |A and B| / |A or B|. Li and Koenig, "b-Bit Minwise Hashing" (2010): a byte of it is enough. Bands:
Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3.

A set here is the runs of WORDS words of a document, in lower case and without punctuation. ROWS minima, a byte each,
make a 64-bit key. Documents that share a key are candidates; those that agree in ALIKE of all their bytes are alike.

Measured on real passages of 300 words (benchmarks/near_duplicates.py): of those with 1, 5, 10 and 20 % of the words
changed (J = 0.95, 0.77, 0.60, 0.37), 100, 85, 1 and 0 % are found; 94 % at J = 0.80; of 22 million pairs of unrelated
passages of 100 words, none; and none where half of every document is the same header.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BANDS, ROWS = 16, 8  # documents of Jaccard J share a key with probability 1 - (1 - J^8)^16
ALIKE = 92  # of the BANDS * ROWS bytes: an estimated Jaccard of 0.72
WORDS = 3  # of a shingle: with one word in twenty changed, J is still 0.75
SHORT = 32  # with fewer words there are too few shingles: alike is only what has the same words
CHUNK = 1 << 18  # bytes that are hashed together: what fits into the cache of a core
FIRSTS, PREVIOUS = 8, 4  # earlier documents of the same key that a document is compared with
PAIRS = 1 << 15  # that are compared together

# What a byte is: between words, in a word, or the beginning of a word of its own: a sign that matters in formulas, or a
# character of a script without spaces (0xE3 to 0xE9: Chinese and Japanese; Thai is cut at its spaces only).
BETWEEN, INSIDE, OWN = range(3)
SIGNS = {*b"+/=<>%&^$", *range(0xE2, 0xEA), *range(0xEE, 0x100)}
KINDS = bytes(
    OWN if byte in SIGNS else INSIDE if byte >= 0x80 or chr(byte).isalnum() else BETWEEN for byte in range(256)
)
PUNCTUATION = ((0xC2, (0xA0, 0xA1, 0xAB, 0xAD, 0xB7, 0xBB, 0xBF), 2), (0xE2, (0x80,), 3), (0xE3, (0x80,), 3))
"""What is between words, of more than a byte: (first byte, second bytes, length); spaces, quotes, dashes ..."""


def _random(count: int, seed: int) -> np.ndarray:
    """Odd 64-bit numbers without a pattern, the same everywhere (splitmix64): uint64 (count,)."""
    x = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of `x`: uint64."""
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return x ^ (x >> np.uint64(32))


LETTERS = _random(256, 1)[list(bytes(range(256)).lower())] * (np.frombuffer(KINDS, np.uint8) != BETWEEN)
BASE = 0x9E6C63D0876A9A47  # of the polynomial of a word's letters, modulo 2**64
POWERS, INVERSE = (np.full(CHUNK + 1, base, np.uint64) for base in (BASE, pow(BASE, -1, 2**64)))
for _powers in (POWERS, INVERSE):
    _powers[0] = 1
    _powers.cumprod(out=_powers)
PLACES = _random(max(WORDS, SHORT), 2)  # of a word in a shingle, or in a short document
HASHES = (_random(BANDS * ROWS, 3) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def band_keys(texts: Sequence[str]) -> np.ndarray:
    """The keys of each text, uint64 (n, BANDS); 0 = none. A function of the text alone, the same on every machine.

    A text of fewer than SHORT words has one key, of all its words; one without words has none.
    """
    return keys_of([text.encode("utf-8", "surrogatepass") for text in texts])


def keys_of(texts: Sequence[bytes]) -> np.ndarray:
    """`band_keys` of texts in UTF-8."""
    keys = np.zeros((len(texts), BANDS), np.uint64)
    for start, end in _batches(texts):
        if len(texts[start]) >= CHUNK:
            keys[start] = _keys_of_long(texts[start])
        else:
            keys[start:end] = _keys_of_chunk(texts[start:end])
    return keys


def _batches(texts: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Runs of texts that fit into CHUNK with a byte after each; a longer text is a run of its own."""
    ends = np.cumsum([len(text) + 1 for text in texts])
    start = 0
    while start < len(texts):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + CHUNK, side="right")))
        yield start, end
        start = end


def _keys_of_chunk(texts: Sequence[bytes]) -> np.ndarray:
    words, bounds = _word_hashes(texts)
    count = np.diff(bounds)  # words of each text
    keys = np.zeros((len(texts), BANDS), np.uint64)
    long = count >= SHORT
    if long.any():
        keys[long] = _packed(_minima(words, bounds, long))
    short = np.flatnonzero((count > 0) & ~long)
    if len(short):
        rows, place = _rows(bounds[short], count[short])
        total = np.add.reduceat(words[rows] * PLACES[place], np.cumsum(count[short]) - count[short])
        keys[short, 0] = _mixed(total + count[short].astype(np.uint64)) | np.uint64(1)
    return keys


def _keys_of_long(text: bytes) -> np.ndarray:
    """The keys of a text longer than CHUNK, a piece after the other: the minima of all are those of the whole."""
    least = np.full((1, BANDS * ROWS), 2**32 - 1, np.uint32)
    for start in range(0, len(text), CHUNK):
        words, bounds = _word_hashes([text[start : start + CHUNK]])
        if bounds[1] >= SHORT:
            least = np.minimum(least, _minima(words, bounds, np.array([True])))
    return _packed(least)[0] if (least < 2**32 - 1).any() else np.zeros(BANDS, np.uint64)


def _word_hashes(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """A hash of every word, uint64 (w,), and where the words of each text begin among them, int64 (n + 1,)."""
    data = b"\n".join(texts) + b"\n"
    letters, kinds = np.frombuffer(data, np.uint8), np.frombuffer(bytearray(data.translate(KINDS)), np.uint8)
    for lead, seconds, length in () if data.isascii() else PUNCTUATION:
        at = np.flatnonzero(letters[: 1 - length] == lead)
        at = at[np.isin(letters[at + 1], seconds)]
        kinds[at[:, None] + np.arange(length)] = BETWEEN
    begins = kinds == OWN
    begins[0] |= kinds[0] != BETWEEN
    begins[1:] |= (kinds[1:] != BETWEEN) & (kinds[:-1] == BETWEEN)
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.empty(0, np.uint64), np.zeros(len(texts) + 1, np.int64)
    values = LETTERS[letters]  # (bytes,)
    values *= POWERS[: len(values)]
    if not data.isascii():
        values *= kinds != BETWEEN
    words = _mixed(np.add.reduceat(values, starts) * INVERSE[starts])  # a word is the same wherever it stands
    ends = np.cumsum([len(text) + 1 for text in texts])
    return words, np.concatenate([[0], np.searchsorted(starts, ends)])


def _minima(words: np.ndarray, bounds: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The smallest value of each hash over the shingles of the chosen texts: uint32 (chosen, BANDS * ROWS)."""
    shingles = words[: 1 - WORDS] * PLACES[0]
    for i in range(1, WORDS):
        shingles += words[i : len(words) - WORDS + 1 + i] * PLACES[i]
    count = np.diff(bounds)[chosen] - (WORDS - 1)  # in each text, those that end in the next one left out
    rows, _ = _rows(bounds[:-1][chosen], count)
    hashed = (_mixed(shingles) >> np.uint64(32)).astype(np.uint32)[rows]
    starts = np.cumsum(count) - count
    least = np.empty((len(HASHES), len(count)), np.uint32)
    room = np.empty_like(hashed)
    for i, odd in enumerate(HASHES):  # times an odd number is a permutation of the 32-bit numbers
        np.multiply(hashed, odd, out=room)
        np.minimum.reduceat(room, starts, out=least[i])
    return least.T


def _rows(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices of runs, one after the other, and the place of each in its run: int64 (counts.sum(),) both."""
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + place, place


def _packed(least: np.ndarray) -> np.ndarray:
    """The low byte of each minimum, ROWS of them in a key, never 0: uint64 (n, BANDS)."""
    keys = np.ascontiguousarray(least.astype(np.uint8)).view("<u8").astype(np.uint64)
    keys[keys == 0] = 1
    return keys


# ---- Pairs ----


@dataclass(frozen=True)
class Similar:
    """Which documents are alike: those that say exactly the same, and pairs of others."""

    first: np.ndarray
    """int64 (n,): the first document that says exactly the same, perhaps itself."""
    earlier: np.ndarray
    """int64 (m,): for each pair of documents that are almost alike, the earlier one; each the first of its copies."""
    later: np.ndarray
    """int64 (m,): the later one; the pairs are in its order."""

    def of_later(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each document that is like earlier ones, in order, with these."""
        starts = np.flatnonzero(np.append(True, self.later[1:] != self.later[:-1]))[: len(self.later)]
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(self.later)], strict=False):
            yield int(self.later[start]), self.earlier[start:end]


def similar_documents(content: np.ndarray, keys: np.ndarray) -> Similar:
    """Find documents that are alike: which pairs are found depends only on these two and on those before them.

    A document is compared with those that share a key with it: the first of them and each further one that is not like
    the ones before (at most FIRSTS), the one just before it, and PREVIOUS before it that are not like the same first.
    So what shares a key without being alike (the same header and footer) costs little and links nothing.

    Args:
        content: hash of all that a document says, uint64 (n,).
        keys: `band_keys`, uint64 (n, BANDS).
    """
    n = len(content)
    order = np.argsort(content, kind="stable")
    fresh = np.ones(n, bool)
    fresh[1:] = content[order[1:]] != content[order[:-1]]
    first = np.empty(n, np.int64)
    first[order] = order[np.flatnonzero(fresh)[np.cumsum(fresh) - 1]] if n else order
    alone = np.flatnonzero(first == np.arange(n))
    found = np.empty(0, np.uint64)  # later document << 32 | earlier document
    for band in range(BANDS):
        found = _distinct(np.concatenate([found, *_pairs_of_band(alone, keys, band)]))
    return Similar(first, (found & np.uint64(2**32 - 1)).astype(np.int64), (found >> np.uint64(32)).astype(np.int64))


def _distinct(values: np.ndarray) -> np.ndarray:
    """Sorted, each once."""
    values.sort()
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


def _pairs_of_band(documents: np.ndarray, keys: np.ndarray, band: int) -> list[np.ndarray]:
    """Pairs of documents (ascending) that share this key and are alike, some twice: uint64, later << 32 | earlier."""
    mine = keys[documents, band]
    documents, mine = documents[mine != 0], mine[mine != 0]
    if len(documents) < 2:
        return []
    order = np.argsort(mine, kind="stable")
    documents, mine = documents[order], mine[order]
    same = mine[1:] == mine[:-1]
    shared = np.append(same, False) | np.append(False, same)
    documents, mine = documents[shared], mine[shared]  # those of one key together, in their order
    if not len(documents):
        return []
    leader = np.full(len(documents), -1)
    rest = np.arange(len(documents))  # not like any first one so far
    found = []
    for _ in range(FIRSTS):
        begins = np.append(True, mine[rest[1:]] != mine[rest[:-1]])
        ahead = rest[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
        alike = (ahead == rest) | _alike(keys, documents[ahead], documents[rest])
        leader[rest[alike]] = ahead[alike]
        found.append((ahead[alike & ~begins], rest[alike & ~begins]))
        rest = rest[~alike]
        if not len(rest):
            break
    for back in range(1, PREVIOUS + 1):
        late = np.arange(back, len(documents))
        late = late[mine[late] == mine[late - back]]
        early = late - back
        if back > 1:
            new = (leader[late] != leader[early]) | (leader[late] < 0)
            early, late = early[new], late[new]
        alike = _alike(keys, documents[early], documents[late])
        found.append((early[alike], late[alike]))
    return [(documents[late] << 32 | documents[early]).astype(np.uint64) for early, late in found]


def _alike(keys: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether two documents agree in ALIKE of their bytes: bool, one for each pair of rows."""
    alike = np.empty(len(a), bool)
    for i in range(0, len(a), PAIRS):
        here = slice(i, i + PAIRS)
        same = keys[a[here]].view(np.uint8) == keys[b[here]].view(np.uint8)
        alike[here] = np.count_nonzero(same, axis=1) >= ALIKE
    return alike
