"""Copies with small changes are found, other texts are not, and the keys are a function of the text alone."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.storing.near_duplicates import (
    ALIKE,
    BANDS,
    CHUNK,
    ROWS,
    SHORT,
    WORDS,
    Keys,
    keys_of,
    similar_documents,
)

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared" / "data"


def real_words(name: str = "wikitext2-test.txt") -> list[str]:
    path = SHARED / name
    if not path.exists():
        pytest.skip("needs ../shared/data")
    return path.read_text(encoding="utf-8").split()


def passages(words: list[str], length: int, count: int) -> list[str]:
    return [" ".join(words[i * length : (i + 1) * length]) for i in range(count)]


def edited(text: str, share: float, draw: random.Random) -> str:
    """Some of its words replaced, removed or doubled."""
    words = text.split()
    for i in draw.sample(range(len(words)), round(share * len(words))):
        words[i] = draw.choice(["", f"other{draw.random()}", f"{words[i]} more{draw.random()}"])
    return " ".join(words)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+|[+/=<>%&^$]", text.lower())
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


def jaccard(a: str, b: str) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def keys_of_texts(texts: list[str]) -> Keys:
    return keys_of([text.encode("utf-8", "surrogatepass") for text in texts])


def as_rows(keys: Keys) -> list[tuple[int, ...]]:
    """All the keys of each document."""
    rows: list[tuple[int, ...]] = [(word,) for word in keys.words.tolist()]
    for i, bands in zip(keys.long.tolist(), keys.bands.tolist(), strict=True):
        assert rows[i] == (0,)
        rows[i] = tuple(bands)
    return rows


def long_keys(bands: np.ndarray) -> Keys:
    return Keys(np.zeros(len(bands), np.uint64), np.arange(len(bands), dtype=np.int32), bands)


def estimate(a: str, b: str) -> float:
    keys = keys_of_texts([a, b]).bands.view(np.uint8)
    return float((keys[0] == keys[1]).mean())


def pairs(texts: list[str]) -> set[tuple[int, int]]:
    found = similar_documents(np.arange(len(texts), dtype=np.uint64), keys_of_texts(texts))
    return set(zip(found.earlier.tolist(), found.later.tolist(), strict=True))


# ---- The keys ----


def test_the_shape_of_the_keys():
    keys = keys_of_texts(["word " * 50, "short", "", " ?! ", "…—", "word " * SHORT, "word " * (SHORT - 1)])
    assert [array.dtype for array in keys] == [np.uint64, np.int32, np.uint64]
    assert keys.long.tolist() == [0, 5]
    assert keys.bands.shape == (2, BANDS)
    assert keys.bands.all()
    assert (keys.words != 0).tolist() == [False, True, False, False, False, False, True]  # without words there is none
    assert [array.shape for array in keys_of([])] == [(0,), (0,), (0, BANDS)]


def test_a_short_text_needs_little_memory():
    keys = keys_of_texts(["one line of a few words"] * 1000)
    assert sum(array.nbytes for array in keys) == 8000


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.text(max_size=300), min_size=1, max_size=8), st.randoms())
def test_keys_do_not_depend_on_the_neighbours(texts: list[str], draw: random.Random):
    texts += [" ".join(draw.choices(["a", "b", "é", "漢字", "x=1", ","], k=80))]
    together = as_rows(keys_of_texts(texts))
    assert together == [as_rows(keys_of_texts([text]))[0] for text in texts]
    order = draw.sample(range(len(texts)), len(texts))
    assert as_rows(keys_of_texts([texts[i] for i in order])) == [together[i] for i in order]


def test_keys_are_the_same_in_every_process_and_on_every_machine():
    text = " ".join(f"word{i % 40} {i}" for i in range(200))
    code = (
        "import hashlib; from utils.data.storing.near_duplicates import keys_of;"
        f"keys = keys_of([{text!r}.encode(), 'A short one: naïve 漢字.'.encode()]);"
        "found = [keys.bands.astype('<u8').tobytes(), keys.words[1:].astype('<u8').tobytes(), bytes(120)];"
        "print(hashlib.sha256(b''.join(found)).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("0", "12345")
    }  # fmt: skip
    assert said == {"605263428d747f3bbaaa20fa8d695fe673c67a9f8211a2a7f93c4649174d247e"}


@pytest.mark.parametrize("words", [6, 60])
def test_case_spaces_and_punctuation_do_not_count(words: int):
    plain = " ".join(f"word{i}" for i in range(words))
    fancy = "\r\n ".join(f"«WORD{i}»," if i % 2 else f"“Word{i}” —\u00a0" for i in range(words))
    keys = as_rows(keys_of_texts([plain, fancy]))
    assert keys[0] == keys[1] != (0,)


def test_signs_of_a_formula_count():
    keys = keys_of_texts(["3 + 4", "3 / 4", "3 = 4", "a < b", "a > b"])
    assert len(np.unique(keys.words)) == 5


def test_chinese_and_japanese_characters_are_words():
    draw = random.Random(1)
    text = "".join(chr(draw.randrange(0x4E00, 0x6000)) for _ in range(400))
    changed = text[:100] + "一二" + text[103:300] + "。" + text[300:]
    other = "".join(chr(draw.randrange(0x4E00, 0x6000)) for _ in range(400))
    assert pairs([text, changed, other]) == {(0, 1)}


def test_short_texts_are_alike_only_with_the_same_words():
    if not (SHARED / "tinyshakespeare.txt").exists():
        pytest.skip("needs ../shared/data")
    lines = (SHARED / "tinyshakespeare.txt").read_text(encoding="utf-8").splitlines()
    lines += [f"{line} {extra}" for line in lines[:3000] for extra in ("x", "y")]
    plain = [" ".join(re.findall(r"[a-z0-9]+|[&$]", line.lower())) for line in lines]
    assert max(len(words.split()) for words in plain) < SHORT
    first = keys_of_texts(lines).words.tolist()
    assert len(set(first)) == len(set(plain)) == len(set(zip(first, plain, strict=True)))


# ---- How alike ----


def test_the_share_of_equal_bytes_is_the_jaccard_index():
    draw = random.Random(2)
    for text in passages(real_words(), 250, 40):
        other = edited(text, draw.uniform(0.0, 0.2), draw)
        true = jaccard(text, other)
        expected = true + (1 - true) / 256
        assert abs(estimate(text, other) - expected) < 4.5 * np.sqrt(0.25 / (BANDS * ROWS))


def test_copies_with_small_changes_are_found_and_others_are_not():
    draw, originals = random.Random(3), passages(real_words(), 200, 400)
    rates = {}
    for share in (0.0, 0.01, 0.03, 0.3):
        found = pairs(originals + [edited(text, share, draw) for text in originals])
        rates[share] = sum((i, i + 400) in found for i in range(400)) / 400
        assert all(j - i == 400 for i, j in found), "two different passages are called alike"
    assert rates[0.0] == rates[0.01] == 1.0
    assert rates[0.03] > 0.9
    assert rates[0.3] == 0.0


def test_every_later_copy_is_tied_to_an_earlier_one():
    draw, originals = random.Random(4), passages(real_words(), 200, 40)
    group = [draw.randrange(40) for _ in range(600)]
    texts = [edited(originals[g], draw.uniform(0, 0.012), draw) for g in group]
    found = pairs(texts)
    assert all(group[i] == group[j] for i, j in found)
    tied = {j for _, j in found}
    assert tied == {j for j in range(600) if group[j] in group[:j]}


def test_a_header_that_all_share_ties_nothing_together():
    words = real_words()
    header, bodies = " ".join(words[-240:]), passages(words, 200, 800)
    texts = [f"{header} {body}" for body in bodies]
    assert 0.4 < jaccard(texts[0], texts[1]) < 0.6
    assert len(pairs(texts)) < 8
    copies = [edited(text, 0.005, random.Random(5)) for text in texts[:100]]
    found = pairs(texts + copies)
    assert sum((i, i + 800) in found for i in range(100)) >= 97  # and hides no copy


# ---- Long texts ----


@pytest.mark.parametrize("size", [CHUNK - 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_texts_around_the_size_of_a_chunk(size: int):
    draw = random.Random(size)
    text = " ".join(f"w{draw.randrange(30000)}" for _ in range(size // 5))[:size]
    assert len(text) == size
    other = " ".join(f"w{draw.randrange(30000, 60000)}" for _ in range(size // 5))[:size]
    assert pairs(["few words", text, other, "An introduction. " + text]) == {(1, 3)}


def test_a_long_text_without_words_or_spaces_is_only_like_itself():
    long = 2 * CHUNK + 5
    keys = keys_of_texts(["a" * long, "-" * long, "b" * long, " " * long])
    assert keys.words.tolist() == [0] * 4
    assert not len(keys.long)


# ---- Pairs ----


def test_keys_that_agree_too_little_are_no_pair():
    keys = np.arange(1, 2 * BANDS + 1, dtype=np.uint64).reshape(2, BANDS) * np.uint64(0x0101010101010101)
    same = -(-ALIKE // ROWS)  # bands
    keys[1, :same] = keys[0, :same]
    content = np.array([1, 2], np.uint64)
    assert similar_documents(content, long_keys(keys)).later.tolist() == [1]
    keys[1, same - 1] ^= np.uint64(0xFFFFFFFFFFFFFFFF)
    assert similar_documents(content, long_keys(keys)).later.tolist() == []


def test_the_same_content_is_told_by_its_first_document():
    content = np.array([7, 9, 7, 8, 9, 7], np.uint64)
    found = similar_documents(content, keys_of([b""] * 6))
    assert found.first.tolist() == [0, 1, 0, 3, 1, 0]
    assert found.copies().tolist() == [False, False, True, False, True, True]
    assert not len(found.later)
    assert list(found.of_later()) == []
    assert similar_documents(content[:0], keys_of([])).first.tolist() == []


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 2**32), st.integers(2, 60), st.integers(1, 6), st.data())
def test_more_documents_change_no_earlier_pair(seed: int, n: int, kinds: int, data: st.DataObject):
    draw = np.random.default_rng(seed)
    patterns = draw.integers(1, 255, (kinds, BANDS * ROWS), dtype=np.uint8)
    keys = patterns[draw.integers(0, kinds, n)]
    keys[draw.random(keys.shape) < draw.choice([0.02, 0.1, 0.2])] = 0
    keys = np.ascontiguousarray(keys).view(np.uint64)
    words = draw.integers(0, kinds + 2, n).astype(np.uint64)
    long = np.flatnonzero(words == 0).astype(np.int32)
    content = draw.integers(0, n, n).astype(np.uint64)
    cut = data.draw(st.integers(1, n))
    held = draw.random(n) < draw.choice([0.0, 0.3])
    held[cut:] = False
    whole = similar_documents(content, Keys(words, long, keys[long]), held)
    before = long[long < cut]
    part = similar_documents(content[:cut], Keys(words[:cut], before, keys[before]), held[:cut])
    assert (whole.first[:cut] == part.first).all()
    old = whole.later < cut
    assert (whole.earlier[old] == part.earlier).all()
    assert (whole.later[old] == part.later).all()
    place = np.empty(n, int)  # with those held before the others
    place[np.argsort(~held, kind="stable")] = np.arange(n)
    assert (place[whole.first] <= place).all()
    assert (place[whole.earlier] < place[whole.later]).all()
    assert (np.diff(place[whole.later]) >= 0).all()


@pytest.mark.parametrize("n", [50, 1 << 16])  # looked through at once, and in parts
def test_pairs_are_those_of_the_definition(n: int):
    draw = np.random.default_rng(6)
    content = draw.integers(0, 2**64, n // 2, np.uint64)[draw.integers(0, n // 2, n)]
    some = draw.integers(1, 2**64, n // 4, np.uint64)
    words = some[(content % np.uint64(len(some))).astype(int)]  # what says the same has the same words
    words[content % np.uint64(5) == 0] = 0
    held = draw.random(n) < 0.1
    found = similar_documents(content, Keys(words, np.empty(0, np.int32), np.empty((0, BANDS), np.uint64)), held)
    first, runs, expected = {}, {}, []
    for i in np.argsort(~held, kind="stable").tolist():
        if first.setdefault(int(content[i]), i) == i and words[i]:
            run = runs.setdefault(int(words[i]), [])
            expected += [(j, i) for j in dict.fromkeys([*run[:1], *run[-1:]])]
            run.append(i)
    assert found.first.tolist() == [first[int(one)] for one in content]
    assert list(zip(found.earlier.tolist(), found.later.tolist(), strict=True)) == expected
    assert [(int(j), i) for i, earlier in found.of_later() for j in earlier] == expected
