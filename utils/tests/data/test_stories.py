"""Tests of the story corpus; know the words only through the stories and the tables of choices."""

import hashlib
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter

import pytest

from utils.data.reading import stories as module
from utils.data.reading import story_words as words
from utils.data.reading.stories import (
    ALL_OPTIONS,
    NotAStory,
    Options,
    Writer,
    chance,
    check_options,
    read_prefix,
    read_story,
    shared_length,
    story_nats,
    tell,
    write_stories,
    write_story,
)

PINNED = "fad97db5afe837cf65ce3558b5db2391ded9f48b786370118f17e29af5105a40"
Choice = tuple[Options, int]


def told(seed: int, index: int) -> tuple[Writer, list[Choice]]:
    """The writer of one story after it told it, and its choices with the sets they were made from."""
    choose = chance(seed, index)
    made: list[Choice] = []

    def remember(options: Options) -> int:
        made.append((options, choose(options)))
        return made[-1][1]

    writer = Writer(remember)
    tell(writer)
    return writer, made


def text_of(writer: Writer) -> str:
    return "".join(writer.parts)


@pytest.fixture(scope="module")
def counts() -> dict[Options, Counter[int]]:
    """How often each option of each set was taken in many stories."""
    taken: dict[Options, Counter[int]] = {options: Counter() for options in ALL_OPTIONS}
    for index in range(12_000):
        for options, choice in told(2, index)[1]:
            taken[options][choice] += 1
    return taken


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [write_story(11, index) for index in range(1500)]


# ---- The same everywhere ----


def test_the_corpus_is_pinned() -> None:
    assert hashlib.sha256(write_stories(50_000, seed=7).encode()).hexdigest() == PINNED


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_the_corpus_does_not_depend_on_the_process(hash_seed: str) -> None:
    code = "import sys; from utils.data.reading.stories import write_stories; print(end=write_stories(20_000, 7))"
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    assert run.stdout == write_stories(20_000, seed=7)


def test_seeds_and_indices_give_different_stories() -> None:
    seen = {write_story(seed, index) for seed in range(30) for index in range(30)}
    assert len(seen) == 900


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 0 or more; got seed -1 and index 0"):
        write_story(-1, 0)


def test_write_stories_joins_whole_stories_until_the_size_is_reached() -> None:
    assert write_stories(0) == ""
    assert write_stories(1, seed=3, start=5) == write_story(3, 5)
    joined = "".join(write_story(3, index) for index in range(4))
    assert write_stories(len(joined), seed=3) == joined
    assert write_stories(len(joined) + 1, seed=3) == joined + write_story(3, 4)


# ---- Reading is the inverse of writing ----


def test_reading_finds_the_choices_and_nats_of_writing() -> None:
    for index in range(500):
        writer, made = told(1, index)
        reading = read_story(text_of(writer))
        assert reading.choices == tuple(writer.choices) == tuple(choice for _, choice in made)
        assert reading.nats == writer.nats
        assert reading.end == len(text_of(writer))


def test_the_read_choices_write_the_same_story(texts: list[str]) -> None:
    for text in texts[:300]:
        choices = iter(read_story(text).choices)
        writer = Writer(lambda _, choices=choices: next(choices))  # type: ignore[misc]
        tell(writer)
        assert text_of(writer) == text
        assert next(choices, None) is None


def test_nats_follow_from_the_weights() -> None:
    for index in range(200):
        writer, made = told(4, index)
        expected = -sum(math.log(options.weights[choice] / sum(options.weights)) for options, choice in made)
        assert story_nats(text_of(writer)) == pytest.approx(expected, abs=1e-9)


def test_nats_of_joined_stories_add_up(texts: list[str]) -> None:
    assert story_nats("") == 0
    assert story_nats("".join(texts[:20])) == pytest.approx(sum(map(story_nats, texts[:20])))


def test_what_is_not_a_story_is_refused_with_the_place_and_the_expected_words() -> None:
    with pytest.raises(NotAStory, match=r"at character 18: expected .*'curious'.*, found 'zzz"):
        story_nats("\nOnce there was a zzz")
    with pytest.raises(NotAStory, match="Not a story at character 0: "):
        read_story("once upon a time")


# ---- The probabilities are proper ----


def test_no_option_begins_another() -> None:
    check_options()


def test_check_options_notices_an_ambiguous_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALL_OPTIONS", [])
    Options([module.option("bell"), module.option("bells")])
    with pytest.raises(AssertionError, match="'bell' begins each of"):
        check_options()


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=lambda options: options.texts[0][:20])
def test_probabilities_of_a_set_sum_to_one(options: Options) -> None:
    assert sum(math.exp(-nats) for nats in options.nats) == pytest.approx(1)


def test_options_come_up_as_often_as_their_weights_say(counts: dict[Options, Counter[int]]) -> None:
    for options, taken in counts.items():
        total = taken.total()
        expected = [total * weight / options.total for weight in options.weights]
        assert min(expected) > 5, options.texts
        surprise = sum((taken[i] - mean) ** 2 / mean for i, mean in enumerate(expected))
        freedom = len(expected) - 1
        assert surprise < freedom + 4 * math.sqrt(2 * freedom) + 6, options.texts


def test_every_option_is_reached(counts: dict[Options, Counter[int]]) -> None:
    for options, taken in counts.items():
        missed = [text for i, text in enumerate(options.texts) if not taken[i]]
        assert missed == []


def test_the_likelihood_ratio_to_even_choices_has_mean_one() -> None:
    """Over stories of even choices q, the mean of p/q is the sum of p over all stories: 1 if p is proper."""
    draw = random.Random(5)
    ratios = []
    for _ in range(3000):
        even_nats = 0.0

        def evenly(options: Options) -> int:
            nonlocal even_nats
            even_nats += math.log(len(options.options))
            return int(draw.random() * len(options.options))

        writer = Writer(evenly)
        tell(writer)
        ratios.append(math.exp(even_nats - story_nats(text_of(writer))))
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.1)


# ---- How far a text makes sense ----


@pytest.mark.parametrize("index", range(6))
def test_a_story_cut_anywhere_can_still_go_on(index: int) -> None:
    text = write_story(8, index)
    assert [read_prefix(text[:end]) for end in range(len(text) + 1)] == list(range(len(text) + 1))


def test_a_run_of_stories_cut_anywhere_can_still_go_on() -> None:
    text = write_stories(1500, seed=9)
    assert all(read_prefix(text[:end]) == end for end in range(0, len(text), 7))


def test_a_wrong_character_is_found_where_it_is() -> None:
    text = write_stories(1000, seed=10)
    for at in range(1, len(text), 3):
        assert read_prefix(text[:at] + "#" + text[at + 1 :]) == at


@pytest.mark.parametrize(
    ("pattern", "others"),
    [
        (r"named (\w+)", words.GIRLS + words.BOYS),
        (rf"(\w+) the (?:{'|'.join(words.TABLES['friend_kind'])})\b", words.FRIENDS),
        (r"(?:saw|found|was) the (\w+), but", words.TABLES["object"]),
        (rf" a ({'|'.join(words.TABLES['colour'])}) ", words.TABLES["colour"]),
    ],
    ids=["hero", "friend", "object", "colour"],
)
def test_a_story_keeps_to_its_facts(texts: list[str], pattern: str, others: list[str]) -> None:
    """Swapping the last mention of a fact for another is an error at that very mention."""
    checked = 0
    for number, text in enumerate(texts[:300]):
        found = re.search(pattern, text)
        if found is None:  # this story introduces its friend in other words
            continue
        fact = found[1]
        *_, last = re.finditer(rf"\b{fact}\b", text)
        assert text.index(fact) < last.start(), text
        other = next(word for word in others[number % len(others) :] + others if word != fact)
        swapped = text[: last.start()] + other + text[last.end() :]
        assert read_prefix(swapped) == last.start() + shared_length(fact, other)
        checked += 1
    assert checked > 200


# ---- The language ----


def test_a_story_has_its_shape_and_size(texts: list[str]) -> None:
    for text in texts:
        assert text.isascii()
        assert re.fullmatch(r"\n[^\n]+(\n[^\n]+)?\n", text)
    sizes = [len(text) - 2 for text in texts]
    assert min(sizes) > 350
    assert max(sizes) < 700
    assert 500 < sum(sizes) / len(sizes) < 620


def test_the_vocabulary_is_small(texts: list[str]) -> None:
    vocabulary = set(re.findall(r"[a-z]+", " ".join(texts).lower()))
    assert 250 < len(vocabulary) <= 500


def test_hero_and_friend_differ() -> None:
    assert not set(words.FRIENDS) & set(words.GIRLS + words.BOYS)
    assert not set(words.TABLES["friend_kind"]) & set(words.ANIMALS)


@pytest.mark.parametrize(
    ("mistake", "pattern"),
    [
        ("a double space", r"  | \n|\n [^\n]"),
        ("a space before a mark", r" [,.!?]"),
        ("two marks in a row", r"[,.!?]{2}"),
        ("a before a vowel", r"\b[Aa] [aeiouAEIOU]"),
        ("an before a consonant", r"\b[Aa]n [^aeiouAEIOU]"),
        ("a sentence without a capital", r'[.!?] "?[a-z]|\." "?[a-z]|\n"?[a-z]|, "[a-z]'),
        (
            "a small letter after a cry, but for who said it",
            r'[!?]" (?!said|cried|sighed|called|cheered)[a-z]',
        ),
        ("a word twice", r"\b(?!smiled)(\w+) \1\b"),
        ("a notation left over", r"[{}\[\]()|=*]"),
    ],
)
def test_there_are_no_slips_of_the_pen(texts: list[str], mistake: str, pattern: str) -> None:
    found = [match[0] for text in texts for match in re.finditer(pattern, text)]
    assert found == [], mistake


def test_quotes_are_balanced_in_every_paragraph(texts: list[str]) -> None:
    for text in texts:
        for paragraph in text.strip().split("\n"):
            assert paragraph.count('"') % 2 == 0
            for speech in re.findall(r'"([^"]*)"', paragraph):
                assert re.fullmatch(r"[A-Z].*[.,!?]", speech), speech


def test_the_pronouns_are_the_heros(texts: list[str]) -> None:
    for text in texts:
        name = re.search(r"named (\w+)", text)
        assert name
        spoken_less = re.sub(r'"[^"]*"', "", text)
        wrong = r"\b(he|him|his)\b" if name[1] in words.GIRLS else r"\b(she|her)\b"
        assert not re.search(wrong, spoken_less), text
