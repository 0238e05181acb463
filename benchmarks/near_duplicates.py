"""How well and how fast near-duplicates are found: `python benchmarks/near_duplicates.py [--documents N]`.

Edits passages of real text (../shared/data), compares each with its original and with all others, times the keys, the
pairs and the sides of many documents, and writes `benchmarks/results/near_duplicates.md`.
"""

import argparse
import random
import resource
import time
from pathlib import Path

import numpy as np

from utils.config.schema import DataConfig
from utils.data.documents import Document
from utils.data.storing.near_duplicates import ALIKE, BANDS, ROWS, SHORT, WORDS, Keys, keys_of, similar_documents
from utils.data.storing.splits import FREE, DocumentTable, TableBuilder, assign_sides, count_leaks

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULT = Path(__file__).parent / "results" / "near_duplicates.md"
TEXTS = ("wikitext2-test.txt", "wikitext2-valid.txt", "tinyshakespeare.txt")
EDITS = (0.0, 0.01, 0.02, 0.05, 0.10, 0.20)


def words_of(name: str) -> list[str]:
    """The words of a text of ../shared/data."""
    return (DATA / name).read_text(encoding="utf-8").split()


def passages(words: list[str], length: int) -> list[str]:
    """The text in pieces of so many words."""
    return [" ".join(words[i : i + length]) for i in range(0, len(words) - length + 1, length)]


def edited(text: str, share: float, others: list[str], draw: random.Random) -> str:
    """A text with this share of its words replaced, removed or doubled by another word, chosen at random."""
    words = text.split()
    for i in draw.sample(range(len(words)), round(share * len(words))):
        words[i] = draw.choice(["", draw.choice(others), f"{words[i]} {draw.choice(others)}"])
    return " ".join(word for word in words if word)


def jaccard(a: str, b: str) -> float:
    """How much two texts share, exactly: of their runs of WORDS words."""
    sets = []
    for text in (a, b):
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        sets.append({tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)})
    return len(sets[0] & sets[1]) / max(1, len(sets[0] | sets[1]))


def found(texts: list[str]) -> set[tuple[int, int]]:
    """The pairs that are found, each as (earlier, later)."""
    pairs = similar_documents(np.arange(len(texts), dtype=np.uint64), keys_of([text.encode() for text in texts]))
    return set(zip(pairs.earlier.tolist(), pairs.later.tolist(), strict=True))


def recall_rows(words: list[str], length: int, draw: random.Random) -> list[str]:
    """For each amount of editing: the true Jaccard, and how many edited passages are found to be alike."""
    rows, originals = [], passages(words, length)[: 2_000_000 // (6 * length)]
    n = len(originals)
    for share in EDITS:
        copies = [edited(text, share, words, draw) for text in originals]
        true = [jaccard(a, b) for a, b in zip(originals, copies, strict=True)]
        pairs = found(originals + copies)
        hits = sum((i, i + n) in pairs for i in range(n)) / n
        false = sum(j - i != n for i, j in pairs)
        rows.append(f"| {length} | {n:,} | {share:.0%} | {np.mean(true):.2f} | {hits:.1%} | {false} |")
    return rows


def curve_rows(words: list[str], draw: random.Random) -> list[str]:
    """How many pairs of passages of 300 words are found, by their true Jaccard."""
    bins: dict[float, list[bool]] = {}
    originals = passages(words, 300)
    n = len(originals)
    for share in np.linspace(0.002, 0.08, 30):
        copies = [edited(text, float(share), words, draw) for text in originals]
        pairs = found(originals + copies)
        for i, (a, b) in enumerate(zip(originals, copies, strict=True)):
            bins.setdefault(round(jaccard(a, b) * 20) / 20, []).append((i, i + n) in pairs)
    return [f"| {j:.2f} | {len(hits):,} | {np.mean(hits):.1%} |" for j, hits in sorted(bins.items()) if len(hits) > 50]


def header_rows(words: list[str], draw: random.Random) -> list[str]:
    """Documents that share a header: how many pairs are called alike, and the largest group that hangs together."""
    rows = []
    for share in (0.0, 0.3, 0.5, 0.6, 0.7, 0.8):
        bodies = passages(words, 200)
        header = " ".join(draw.sample(words, round(200 * share / (1 - share))))
        texts = [f"{header} {body}" for body in bodies]
        pairs, group = found(texts), list(range(len(texts)))
        for i, j in sorted(pairs, key=lambda pair: pair[1]):
            group[j] = min(group[j], group[i])
        largest = max(np.bincount(group))
        follow = len({j for _, j in pairs})
        true = jaccard(texts[0], texts[1])
        rows.append(f"| {share:.0%} | {len(texts):,} | {true:.2f} | {follow:,} | {largest:,} |")
    return rows


def speed_rows(words: list[str]) -> list[str]:
    """Seconds for the table of many documents."""
    rows = []
    text = " ".join(words)
    for size in (100, 1_000, 10_000):
        pieces = [text[i : i + size] for i in range(0, len(text) - size, size)]
        documents = [Document(text=piece) for piece in pieces * max(1, 20_000_000 // len(text))]
        builder, start = TableBuilder(), time.process_time()
        for i in range(0, len(documents), 8_000_000 // size):
            builder.add(documents[i : i + 8_000_000 // size])
        seconds = time.process_time() - start
        rate = len(documents) * size / seconds / 1e6
        rows.append(f"| table, documents of {size:,} | {len(documents):,} | {seconds:.2f} | {rate:.0f} MB/s |")
    return rows


def many_row(what: str, count: int) -> str:
    """The sides of so many documents, a tenth of them copies, and the memory that the whole process needs."""
    draw = np.random.default_rng(1)
    copies = draw.permutation(count)[: count // 10]
    if what == "passages":
        bands = np.empty((count, BANDS), np.uint64)
        for row in bands:
            row[:] = draw.integers(1, 2**63, BANDS)
        bands[copies] = bands[np.sort(copies) // 2]
        keys = Keys(np.zeros(count, np.uint64), np.arange(count, dtype=np.int32), bands)
    else:
        words = draw.integers(1, 2**63, count, np.uint64)
        words[copies] = words[np.sort(copies) // 2]
        keys = Keys(words, np.empty(0, np.int32), np.empty((0, BANDS), np.uint64))
    content = draw.integers(0, 2**64, count, np.uint64)
    characters = np.full(count, 2000 if what == "passages" else 60, np.uint32)
    table = DocumentTable(content, characters, np.full(count, FREE, np.uint8), np.zeros(count, np.uint16), keys)
    before, start = peak(), time.process_time()
    sides = assign_sides(table, DataConfig())
    seconds = time.process_time() - start
    assert count_leaks(table, sides) == 0
    return f"| sides of {what} | {count:,} | {seconds:.1f} | peak {peak():.0f} MB (before: {before:.0f} MB) |"


def peak() -> float:
    """The most memory this process had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    count = parser.parse_args().documents
    many = [many_row("lines", count), many_row("passages", count)]  # first, while the process is small
    draw, words = random.Random(1), [word for name in TEXTS for word in words_of(name)]
    lines = [
        "# Near-duplicates",
        "",
        f"`python benchmarks/near_duplicates.py`: {BANDS} bands of {ROWS} minima, shingles of {WORDS} words, alike "
        f"from {ALIKE} of {BANDS * ROWS} equal bytes, by all words below {SHORT} words. Text: {', '.join(TEXTS)}.",
        "",
        "| words | passages | words edited | Jaccard (mean) | found | false pairs |",
        "| --- | --- | --- | --- | --- | --- |",
        *(row for length in (40, 100, 300, 1000) for row in recall_rows(words, length, draw)),
        "",
        "| Jaccard (300 words) | pairs | found |",
        "| --- | --- | --- |",
        *curve_rows(words, draw),
        "",
        "| shared header | documents | Jaccard of two | called alike | largest group |",
        "| --- | --- | --- | --- | --- |",
        *header_rows(words, draw),
        "",
        "| what | documents | CPU seconds | |",
        "| --- | --- | --- | --- |",
        *speed_rows(words),
        *many,
    ]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
