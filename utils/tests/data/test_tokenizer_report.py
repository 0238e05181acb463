"""The report on a tokenizer: its numbers are those of a plain count, and it draws itself whatever a text says."""

import json
from collections import Counter

import pytest

from utils.data.reading.stories import write_stories
from utils.data.tokenizing.tokenizer import END, KINDS, UNKNOWN, build_tokenizer
from utils.data.tokenizing.tokenizer_report import inspect_tokenizer

STORIES = write_stories(30_000)
HELD = [write_stories(2_000, seed=1), "é 😀", "", "<script>alert(1)</script>\n\n"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_a_plain_count(kind):
    tokenizer = build_tokenizer(kind, STORIES, 500)
    report = inspect_tokenizer(tokenizer, HELD)
    used = Counter(token for text in HELD for token in tokenizer.encode(text))
    assert (report.texts, report.characters) == (4, sum(map(len, HELD)))
    assert report.tokens == used.total()
    assert report.bytes_per_token == pytest.approx(sum(len(text.encode()) for text in HELD) / used.total())
    assert report.unused == tokenizer.vocab_size - len(tokenizer.special_tokens) - len(used)
    assert report.most_used[0][1] == max(used.values())
    assert "".join(report.samples[0]) == HELD[0].lstrip("\n")[:240]
    assert report.kind == kind
    if kind == "char":
        assert report.unknown_rate == sum(c not in STORIES for text in HELD for c in text) / report.tokens > 0
        assert report.loss.lost == sum(c not in STORIES for text in HELD for c in text)
    else:
        assert (report.unknown_rate, report.loss.lost) == (0, 0)


def test_it_draws_itself():
    report = inspect_tokenizer(build_tokenizer("bpe", STORIES, 500), HELD)
    text, page, told = str(report), report._repr_html_(), json.loads(json.dumps(report.to_dict()))
    for part in (f"{END} = 0", "bytes per token", "unused tokens", "every text comes back exactly", "|", "\\n"):
        assert part in text
    assert "<script>alert" not in page
    assert "&lt;" in page
    assert page.count("<span") == sum(map(len, report.samples))
    assert told["tokens"] == report.tokens
    assert told["loss"]["lost"] == 0
    assert told["unused_share"] == pytest.approx(report.unused / 499)
    lost = inspect_tokenizer(build_tokenizer("char", "abc "), ["a dab"])
    assert (
        f"1 of 5 characters do not come back (characters it does not know): 'a dab' comes back as 'a {UNKNOWN}ab'"
        in str(lost)
    )


def test_without_a_text_it_shows_the_vocabulary():
    report = inspect_tokenizer(build_tokenizer("byte", ""))
    assert report.tokens == report.unused == 0
    assert "nothing: no text was given" in str(report)
    assert "bytes per token" not in str(report)


def test_one_long_text_is_sampled_all_over_and_taken_in_bounds(monkeypatch):
    monkeypatch.setattr("utils.data.tokenizing.tokenizer_report.MOST_TEXT", 10_000)
    report = inspect_tokenizer(build_tokenizer("bpe", STORIES, 400), (STORIES for _ in range(10**9)))
    assert (report.texts, report.characters) == (1, 10_000)
    assert len(report.samples) == 3
    assert all("".join(sample) in STORIES for sample in report.samples)
