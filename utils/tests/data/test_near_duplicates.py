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

from utils.data.storing.near_duplicates import ALIKE, BANDS, CHUNK, ROWS, SHORT, WORDS, band_keys, similar_documents

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


def estimate(a: str, b: str) -> float:
    keys = band_keys([a, b]).view(np.uint8).reshape(2, -1)
    return float((keys[0] == keys[1]).mean())


def pairs(texts: list[str]) -> set[tuple[int, int]]:
    found = similar_documents(np.arange(len(texts), dtype=np.uint64), band_keys(texts))
    return set(zip(found.earlier.tolist(), found.later.tolist(), strict=True))


# ---- The keys ----


def test_the_shape_of_the_keys():
    keys = band_keys(["word " * 50, "short", "", " ?! ", "…—"])
    assert keys.shape == (5, BANDS)
    assert keys.dtype == np.uint64
    assert keys[0].all()  # a long text has them all
    assert (keys[1] != 0).tolist() == [True] + [False] * (BANDS - 1)  # a short one has one
    assert not keys[2:].any()  # without words there is none
    assert band_keys([]).shape == (0, BANDS)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.text(max_size=300), min_size=1, max_size=8), st.randoms())
def test_keys_do_not_depend_on_the_neighbours(texts: list[str], draw: random.Random):
    texts += [" ".join(draw.choices(["a", "b", "é", "漢字", "x=1", ","], k=80))]
    together = band_keys(texts)
    assert (together == np.concatenate([band_keys([text]) for text in texts])).all()
    order = draw.sample(range(len(texts)), len(texts))
    assert (band_keys([texts[i] for i in order]) == together[order]).all()


def test_keys_are_the_same_in_every_process_and_on_every_machine():
    text = " ".join(f"word{i % 40} {i}" for i in range(200))
    code = (
        "import hashlib; from utils.data.storing.near_duplicates import band_keys;"
        f"print(hashlib.sha256(band_keys([{text!r}, 'A short one: naïve 漢字.']).astype('<u8').tobytes()).hexdigest())"
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
    keys = band_keys([plain, fancy])
    assert (keys[0] == keys[1]).all()


def test_signs_of_a_formula_count():
    keys = band_keys(["3 + 4", "3 / 4", "3 = 4", "a < b", "a > b"])
    assert len(np.unique(keys[:, 0])) == 5


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
    first = band_keys(lines)[:, 0].tolist()
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
    keys = band_keys(["a" * long, "-" * long, "b" * long, " " * long])
    assert keys.shape == (4, BANDS)
    assert not keys.any()


# ---- Pairs ----


def test_keys_that_agree_too_little_are_no_pair():
    keys = np.arange(1, 2 * BANDS + 1, dtype=np.uint64).reshape(2, BANDS) * np.uint64(0x0101010101010101)
    same = -(-ALIKE // ROWS)  # bands
    keys[1, :same] = keys[0, :same]
    content = np.array([1, 2], np.uint64)
    assert similar_documents(content, keys).later.tolist() == [1]
    keys[1, same - 1] ^= np.uint64(0xFFFFFFFFFFFFFFFF)
    assert similar_documents(content, keys).later.tolist() == []


def test_the_same_content_is_told_by_its_first_document():
    content = np.array([7, 9, 7, 8, 9, 7], np.uint64)
    found = similar_documents(content, np.zeros((6, BANDS), np.uint64))
    assert found.first.tolist() == [0, 1, 0, 3, 1, 0]
    assert not len(found.later)
    assert similar_documents(content[:0], np.zeros((0, BANDS), np.uint64)).first.tolist() == []


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 2**32), st.integers(2, 60), st.integers(1, 6), st.data())
def test_more_documents_change_no_earlier_pair(seed: int, n: int, kinds: int, data: st.DataObject):
    draw = np.random.default_rng(seed)
    patterns = draw.integers(1, 255, (kinds, BANDS * ROWS), dtype=np.uint8)
    keys = patterns[draw.integers(0, kinds, n)]
    keys[draw.random(keys.shape) < draw.choice([0.02, 0.1, 0.2])] = 0
    keys = np.ascontiguousarray(keys).view(np.uint64)
    content = draw.integers(0, n, n).astype(np.uint64)
    cut = data.draw(st.integers(1, n))
    whole, part = similar_documents(content, keys), similar_documents(content[:cut], keys[:cut])
    assert (whole.first[:cut] == part.first).all()
    old = whole.later < cut
    assert (whole.earlier[old] == part.earlier).all()
    assert (whole.later[old] == part.later).all()
    assert (whole.earlier < whole.later).all()
    assert (np.diff(whole.later) >= 0).all()
