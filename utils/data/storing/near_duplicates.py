"""Which documents are almost alike, by MinHash and LSH bands; knows nothing of sides, files or settings.

Broder, "On the resemblance and containment of documents" (1997): the smallest hash of two sets is the same with
probability J = |A and B| / |A or B|. Li and Koenig, "b-Bit Minwise Hashing" (2010): a byte of it is enough. Bands:
Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3.

A set here is the runs of WORDS words of a document, in lower case and without punctuation. ROWS minima, a byte each,
make a 64-bit key. Documents that share a key are candidates; those that agree in ALIKE of all their bytes are alike.
A document of fewer than SHORT words has one key only, of all its words, so that millions of lines need little memory.

Measured on real passages of 300 words (benchmarks/near_duplicates.py): of those with 1, 5, 10 and 20 % of the words
changed (J = 0.95, 0.77, 0.60, 0.37), 100, 85, 1 and 0 % are found; 94 % at J = 0.80; of 22 million pairs of unrelated
passages of 100 words, none; and none where half of every document is the same header.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

BANDS, ROWS = 16, 8  # documents of Jaccard J share a key with probability 1 - (1 - J^8)^16
ALIKE = 92  # of the BANDS * ROWS bytes: an estimated Jaccard of 0.72
WORDS = 3  # of a shingle: with one word in twenty changed, J is still 0.75
SHORT = 32  # with fewer words there are too few shingles: alike is only what has the same words
CHUNK = 1 << 18  # bytes that are hashed together: what fits into the cache of a core
FIRSTS, PREVIOUS = 8, 4  # earlier documents of the same key that a document is compared with
PAIRS = 1 << 15  # that are compared together
PARTS = 16  # that many documents are looked through in, so that what is sorted at once is small

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


class Keys(NamedTuple):
    """The keys of n documents, m of which have SHORT words or more."""

    words: np.ndarray
    """uint64 (n,): of all the words of a shorter document; 0 = it is a longer one, or has no words."""
    long: np.ndarray
    """int32 (m,): which are the longer ones, ascending."""
    bands: np.ndarray
    """uint64 (m, BANDS): the keys of these."""


def keys_of(texts: Sequence[bytes]) -> Keys:
    """The keys of texts in UTF-8: each is a function of its text alone, the same on every machine."""
    words = np.zeros(len(texts), np.uint64)
    long, bands = [np.empty(0, np.int32)], [np.empty((0, BANDS), np.uint64)]
    for start, end in _batches(texts):
        keys = _keys_of_long(texts[start]) if len(texts[start]) >= CHUNK else _keys_of_chunk(texts[start:end])
        words[start:end] = keys.words
        long.append(keys.long + np.int32(start))
        bands.append(keys.bands)
    return Keys(words, np.concatenate(long), np.concatenate(bands))


def _batches(texts: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Runs of texts that fit into CHUNK with a byte after each; a longer text is a run of its own."""
    ends = np.cumsum([len(text) + 1 for text in texts])
    start = 0
    while start < len(texts):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + CHUNK, side="right")))
        yield start, end
        start = end


def _keys_of_chunk(texts: Sequence[bytes]) -> Keys:
    words, bounds = _word_hashes(texts)
    count = np.diff(bounds)  # words of each text
    keys = np.zeros(len(texts), np.uint64)
    long = count >= SHORT
    short = np.flatnonzero((count > 0) & ~long)
    if len(short):
        rows, place = _rows(bounds[short], count[short])
        total = np.add.reduceat(words[rows] * PLACES[place], np.cumsum(count[short]) - count[short])
        keys[short] = _mixed(total + count[short].astype(np.uint64)) | np.uint64(1)
    bands = _packed(_minima(words, bounds, long)) if long.any() else np.empty((0, BANDS), np.uint64)
    return Keys(keys, np.flatnonzero(long).astype(np.int32), bands)


def _keys_of_long(text: bytes) -> Keys:
    """The keys of a text longer than CHUNK, a piece after the other: the minima of all are those of the whole."""
    least = np.full((1, BANDS * ROWS), 2**32 - 1, np.uint32)
    for start in range(0, len(text), CHUNK):
        words, bounds = _word_hashes([text[start : start + CHUNK]])
        if bounds[1] >= SHORT:
            least = np.minimum(least, _minima(words, bounds, np.array([True])))
    found = int((least < 2**32 - 1).any())
    return Keys(np.zeros(1, np.uint64), np.zeros(found, np.int32), _packed(least)[:found])


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
    """int32 (n,): the first document that says exactly the same, perhaps itself."""
    earlier: np.ndarray
    """int32 (m,): for each pair of documents that are almost alike, the earlier one; each the first of its copies."""
    later: np.ndarray
    """int32 (m,): the later one; the pairs are in its order."""

    def copies(self) -> np.ndarray:
        """Which documents say exactly the same as an earlier one: bool (n,)."""
        return self.first != np.arange(len(self.first), dtype=self.first.dtype)

    def of_later(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each document that is like earlier ones, in order, with these."""
        bounds = np.flatnonzero(np.concatenate([[True], self.later[1:] != self.later[:-1], [True]]))
        for i in range(0, len(bounds) - 1 if len(self.later) else 0, PAIRS):
            for start, end in pairwise(bounds[i : i + PAIRS + 1].tolist()):
                yield int(self.later[start]), self.earlier[start:end]


def similar_documents(content: np.ndarray, keys: Keys, held: np.ndarray | None = None) -> Similar:
    """Find documents that are alike: which pairs are found depends only on these and on those before them.

    A document is compared with those that share a key with it: the first of them and each further one that is not like
    the ones before (at most FIRSTS), the one just before it, and PREVIOUS before it that are not like the same first.
    So what shares a key without being alike (the same header and footer) costs little and links nothing.

    Args:
        content: hash of all that a document says, uint64 (n,); n < 2**31.
        keys: of the same documents.
        held: which documents come before all others, wherever they stand, bool (n,); None = none.
    """
    late = np.zeros(len(content), bool) if held is None else ~held
    first = np.arange(len(content), dtype=np.int32)
    alone = np.ones(len(content), bool)
    for rows, begins in _together(content, alone.copy(), late):
        first[rows] = rows[_first_of_each(begins)]
        alone[rows] = begins
    found = [np.empty(0, np.uint64), *_pairs_of_words(keys.words, alone & (keys.words != 0), late)]
    alone, late_long = alone[keys.long], late[keys.long]
    for band in range(BANDS):
        found[0] = _distinct(np.concatenate([found[0], *_pairs_of_band(keys, band, alone, late, late_long)]))
    pairs = np.concatenate(found)  # each once: short documents are in no band
    del found
    pairs.sort()
    earlier = _row(pairs)
    pairs >>= np.uint64(32)
    return Similar(first, earlier, _row(pairs))


def _numbers(rows: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Numbers below 2**32 in the order of the documents, of which those before the late ones come first: uint64."""
    return rows.astype(np.uint64) | late[rows].astype(np.uint64) << np.uint64(31)


def _coded(numbers: np.ndarray, earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Pairs of documents as numbers in the order of the later ones, and then of the earlier ones: uint64."""
    return numbers[later] << np.uint64(32) | numbers[earlier]


def _row(pairs: np.ndarray) -> np.ndarray:
    """The earlier documents of coded pairs: int32."""
    return (pairs.astype(np.uint32) & np.uint32(2**31 - 1)).astype(np.int32)


def _distinct(values: np.ndarray) -> np.ndarray:
    """Sorted, each once."""
    values.sort()
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


def _together(keys: np.ndarray, chosen: np.ndarray, late: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Those of the chosen that share a key, int64, and where another key begins, bool: some keys after the other.

    Those of one key are together and in their order, the late ones last.
    """
    parts = PARTS if len(keys) >= 1 << 16 else 1
    which = keys.view(np.uint8)[7::8] % np.uint8(parts)  # keys are hashes: a byte of them parts them evenly
    for part in range(parts):
        here = chosen & (which == part)
        rows = np.concatenate([np.flatnonzero(here & ~late), np.flatnonzero(here & late)])
        mine = keys[rows]
        order = np.argsort(mine, kind="stable")
        mine = mine[order]
        same = mine[1:] == mine[:-1]
        shared = np.append(same, False) | np.append(False, same)
        if same.any():
            begins = np.append(True, ~same)
            yield rows[order[shared]], begins[shared]


def _first_of_each(begins: np.ndarray) -> np.ndarray:
    """For each place, where its run begins: int64."""
    return np.flatnonzero(begins)[np.cumsum(begins) - 1]


def _pairs_of_words(words: np.ndarray, chosen: np.ndarray, late: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of short documents of the same words, coded: each with the first and with the one just before it."""
    for rows, begins in _together(words, chosen, late):
        numbers, later = _numbers(rows, late), np.flatnonzero(~begins)
        yield _coded(numbers, _first_of_each(begins)[later], later)
        later = later[~begins[later - 1]]
        yield _coded(numbers, later - 1, later)


def _pairs_of_band(
    keys: Keys, band: int, chosen: np.ndarray, late: np.ndarray, late_long: np.ndarray
) -> Iterator[np.ndarray]:
    """Pairs of long documents that share this key and are alike, coded, some twice."""
    for documents, new_key in _together(np.ascontiguousarray(keys.bands[:, band]), chosen, late_long):
        key = np.cumsum(new_key)
        leader = np.full(len(documents), -1)
        rest = np.arange(len(documents))  # not like any first one so far
        found = []
        for _ in range(FIRSTS):
            begins = np.append(True, key[rest[1:]] != key[rest[:-1]])
            ahead = rest[_first_of_each(begins)]
            alike = (ahead == rest) | _alike(keys.bands, documents[ahead], documents[rest])
            leader[rest[alike]] = ahead[alike]
            found.append((ahead[alike & ~begins], rest[alike & ~begins]))
            rest = rest[~alike]
            if not len(rest):
                break
        for back in range(1, PREVIOUS + 1):
            later = np.arange(back, len(documents))
            later = later[key[later] == key[later - back]]
            earlier = later - back
            if back > 1:
                new = (leader[later] != leader[earlier]) | (leader[later] < 0)
                earlier, later = earlier[new], later[new]
            alike = _alike(keys.bands, documents[earlier], documents[later])
            found.append((earlier[alike], later[alike]))
        numbers = _numbers(keys.long[documents], late)
        for earlier, later in found:
            yield _coded(numbers, earlier, later)


def _alike(bands: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether two documents agree in ALIKE of their bytes: bool, one for each pair of rows."""
    alike = np.empty(len(a), bool)
    for i in range(0, len(a), PAIRS):
        here = slice(i, i + PAIRS)
        same = bands[a[here]].view(np.uint8) == bands[b[here]].view(np.uint8)
        alike[here] = np.count_nonzero(same, axis=1) >= ALIKE
    return alike
