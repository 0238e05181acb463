"""Drift: its numbers are those of the definitions, its warnings come where texts really differ and nowhere else."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.looking.drift import by_chance, divergence, drift, largest_gap, sample_tokens
from utils.data.storing.tokens import Shard, Tokens
from utils.data.tokenizing.tokenizer import build_tokenizer

TEXTS = Path(__file__).parents[4] / "shared" / "data"
COUNTS = st.lists(st.integers(0, 1000), min_size=3, max_size=3).filter(any)


def paragraphs(name: str) -> list[str]:
    path = TEXTS / f"{name}.txt"
    if not path.is_file():
        pytest.skip("needs ../shared/data")
    return [part for part in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")) if part.strip()]


@pytest.fixture(scope="module")
def shakespeare() -> list[str]:
    return paragraphs("tinyshakespeare")


def severities(report) -> dict[str, str]:
    return {finding.name: finding.severity for finding in report.findings}


def test_divergence_by_hand():
    assert divergence(np.array([1.0, 0]), np.array([0, 7.0])) == pytest.approx(1.0)
    assert divergence(np.array([2.0, 4]), np.array([3.0, 6])) == pytest.approx(0.0, abs=1e-12)
    # p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4): (log2(4/3) + (log2(2/3) + log2(2)) / 2) / 2
    expected = (np.log2(4 / 3) + (np.log2(2 / 3) + 1) / 2) / 2
    assert divergence(np.array([5.0, 0]), np.array([5.0, 5])) == pytest.approx(expected)


@given(COUNTS, COUNTS)
@settings(deadline=None, max_examples=60)
def test_divergence_is_a_distance_in_bits(p: list[int], q: list[int]):
    bits = divergence(np.array(p, float), np.array(q, float))
    assert 0 <= bits <= 1 + 1e-9
    assert bits == pytest.approx(divergence(np.array(q, float), np.array(p, float)))


def test_chance_shrinks_with_the_text_and_repeats_itself():
    p = np.full(500, 10.0)
    assert by_chance(p, p) == by_chance(p, p)
    assert by_chance(100 * p, 100 * p) < by_chance(p, p) / 50
    # What two draws of n from K equal shares differ by: (K - 1) / (8 ln 2) x (1/n + 1/n) bits, for large n.
    assert by_chance(100 * p, 100 * p) == pytest.approx(499 / (8 * np.log(2)) * 2 / 500_000, rel=0.25)


def test_largest_gap_by_hand():
    a, b = np.array([1, 2, 3, 4]), np.array([3, 4, 5, 6])
    assert largest_gap(a, b) == largest_gap(b, a) == 0.5
    assert largest_gap(a, a) == 0.0
    assert largest_gap(a, a + 10) == 1.0


def test_halves_of_one_text_are_close(shakespeare):
    half = len(shakespeare) // 2
    tokenizer = build_tokenizer("bpe", "\n\n".join(shakespeare), 512)
    for used in (tokenizer, None):
        report = drift(shakespeare[:half], shakespeare[half:], used)
        assert report.worst == "ok", report
        assert report["shares"].told.startswith("close: ")
        assert report["shares"].number < (0.02 if used else 0.13)


def test_other_books_are_far_apart(shakespeare):
    report = drift(shakespeare, paragraphs("wikitext2-test"))
    assert severities(report) == {"shares": "warning", "unseen": "warning", "length": "warning", "scripts": "ok"}
    assert 0.4 < report["shares"].number < 0.6
    assert "far apart" in str(report)
    assert all(finding.advice for finding in report.findings if finding.severity == "warning")


def test_capitals_have_other_words_and_the_same_script(shakespeare):
    report = drift(shakespeare[:2000], [part.upper() for part in shakespeare[2000:4000]])
    assert severities(report)["shares"] == severities(report)["unseen"] == "warning"
    assert severities(report)["length"] == severities(report)["scripts"] == "ok"


def test_another_script_is_told():
    report = drift(["one two three"] * 30, ["один два три"] * 30)
    assert severities(report)["scripts"] == "warning"
    assert "letters: Latin 100 %; in the other set Cyrillic 100 %" in str(report)
    assert report["unseen"].number == 1.0


def test_ids_and_the_texts_they_came_from_say_the_same(shakespeare):
    tokenizer = build_tokenizer("bpe", "\n".join(shakespeare[:500]), 300)
    a, b = shakespeare[:300], shakespeare[300:600]
    sides = []
    for texts in (a, b):
        rows = tokenizer.encode_batch(texts)
        ids = np.array([i for row in rows for i in row], np.uint16)
        starts = np.cumsum([0, *map(len, rows)])
        sides.append(Tokens([Shard(ids, len(ids), ids.dtype)], starts))
    by_ids, by_texts = drift(*sides, tokenizer), drift(a, b, tokenizer)
    for one, other in zip(by_ids.findings, by_texts.findings, strict=True):
        assert (one.name, one.number) == (other.name, pytest.approx(other.number, abs=1e-3))


def test_a_long_text_is_sampled_from_all_of_it():
    ids = np.repeat(np.arange(5, dtype=np.uint16), 1_000_000)
    counts = sample_tokens(ids).counts
    assert sum(counts.values()) < 2_000_001
    assert all(counts[i] == pytest.approx(400_000, rel=0.02) for i in range(5))


def test_too_little_to_compare():
    assert drift(["a b"], ["a b"])["length"].told == "too few documents to say (1 and 1)"
    assert drift([], ["a b"]).worst == "stop"
    assert "the other set has no text to compare" in str(drift(["a"], np.array([], np.uint16)[:0].tolist()))
    with pytest.raises(ValueError, match="one set is words, the other tokens: give a tokenizer, or both as texts"):
        drift(["a"], np.array([1, 2]))


def test_numbers_are_json():
    report = drift(["one two three"] * 30, ["one two four"] * 30).to_dict()
    assert json.loads(json.dumps(report)) == report
