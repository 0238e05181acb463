"""Endless little stories with an exactly known probability; knows nothing of tokens, files or models.

One program, `tell`, is read three ways: a `Writer` turns chance into text, a `Reader` turns text back into
the same choices and their probability, and where a `Reader` stops, a model's sample stopped making sense.
A model can't beat the corpus's entropy, so `story_nats` is the floor under any training curve on this corpus.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from . import story_words as words


class NotAStory(ValueError):
    """The text leaves the grammar at `offset` (in characters), inside what should be one of `expected`."""

    def __init__(self, offset: int, expected: Sequence[str], found: str) -> None:
        shown = " or ".join(repr(text) for text in expected)
        super().__init__(f"Not a story at character {offset}: expected {shown}, found {found!r}.")
        self.offset = offset
        self.expected = tuple(expected)


# ---- Templates: a table's strings, parsed once ----


@dataclass(frozen=True, slots=True)
class Recall:
    """Say a fact again: `{name}`."""

    name: str


@dataclass(frozen=True, slots=True)
class Choose:
    """Choose from a table and remember the choice: `[name]`; the fact `name` names the table if `by_fact`."""

    name: str
    by_fact: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """One way to go on: the text that tells it from its neighbours, the rest, and the facts it settles."""

    text: str
    rest: "Template" = ()
    facts: Mapping[str, str] = field(default_factory=dict)


class Options:
    """A set of options, the first almost twice as likely as the last; `nats[i]` is -log p of option i."""

    __slots__ = ("cumulative", "nats", "options", "texts", "total", "weights")

    def __init__(self, options: Sequence[Option]) -> None:
        count = len(options)
        self.options = tuple(options)
        self.texts = tuple(option.text for option in options)
        self.weights = tuple(2 * count - i for i in range(count))
        self.cumulative = tuple(accumulate(self.weights))
        self.total = self.cumulative[-1]
        self.nats = tuple(math.log(self.total / weight) for weight in self.weights)
        ALL_OPTIONS.append(self)


Part = str | Recall | Choose | Options
Template = tuple[Part, ...]
ALL_OPTIONS: list[Options] = []


def parse(source: str) -> Template:
    """The parts of a template string; `story_words` describes the notation."""
    parts: list[Part] = []
    while source:
        end = min((at for at in map(source.find, "({[") if at >= 0), default=len(source))
        if end:
            parts.append(source[:end])
            source = source[end:]
            continue
        inside, source = split_bracket(source)
        parts.append(parse_bracket(inside))
    return tuple(parts)


def split_bracket(source: str) -> tuple[str, str]:
    """The first bracket of a source that starts with one, and what follows it."""
    depth = 0
    for at, character in enumerate(source):
        depth += (character in "({[") - (character in ")}]")
        if depth == 0:
            return source[: at + 1], source[at + 1 :]
    raise AssertionError(f"unclosed bracket: {source}")


def parse_bracket(source: str) -> Part:
    """What one bracket, given with its ends, asks for."""
    inside = source[1:-1]
    if source[0] == "{":
        return Recall(inside)
    if source[0] == "[":
        return Choose(inside.removeprefix("="), inside.startswith("="))
    return Options([option(text) for text in inside.split("|")])


def option(source: str, facts: Mapping[str, str] | None = None) -> Option:
    """An option from its template: it is told from its neighbours by the words before its first bracket."""
    parts = parse(source)
    head = parts[0]
    assert isinstance(head, str), f"an option must start with words: {source}"
    return Option(head, parts[1:], facts or {})


# ---- Tables: those of `story_words`, and those that settle facts ----


def person(name: str, pronouns: str) -> Option:
    """A name for the hero; choosing it settles the pronouns."""
    he, him, his = pronouns.split()
    facts = {"hero": name, "he": he, "him": him, "his": his}
    return Option(name, (), facts)


def all_tables() -> dict[str, Options]:
    """Every table by name."""
    tables = {name: Options([option(text) for text in texts]) for name, texts in words.TABLES.items()}
    return tables | hero_tables() | purpose_tables() | trouble_tables()


def hero_tables() -> dict[str, Options]:
    """The hero's kind, which settles the names to choose from, and the names, which settle the pronouns."""
    girls = [person(name, "she her her") for name in words.GIRLS]
    boys = [person(name, "he him his") for name in words.BOYS]
    either = [someone for pair in zip(girls, boys, strict=True) for someone in pair]
    kinds = [Option("girl", (), {"names": "girls"}), Option("boy", (), {"names": "boys"})]
    kinds += [Option(animal, (), {"names": "either"}) for animal in words.ANIMALS]
    return {"kind": Options(kinds), "girls": Options(girls), "boys": Options(boys), "either": Options(either)}


def purpose_tables() -> dict[str, Options]:
    """What the wish is for, in the hero's words and in ours; it settles the table of results."""
    return {
        f"{whose}_purpose": Options(
            [option(text.replace("{my}", my), {"result": result}) for text, result in words.PURPOSES]
        )
        for whose, my in (("my", "my"), ("his", "{his}"))
    }


def trouble_tables() -> dict[str, Options]:
    """The troubles, each of which settles its own table of turns, and those turns with their virtues."""
    tables = {}
    troubles = []
    for barrier, hard, text, turns in words.TROUBLES:
        name = f"{barrier} turns"
        tables[name] = Options([option(turn, {"virtue": virtue}) for virtue, turn in turns])
        troubles.append(option(text, {"barrier": barrier, "hard": hard, "turns": name}))
    return tables | {"trouble": Options(troubles)}


TABLES = all_tables()
STORY = parse(words.STORY)


# ---- The program: one telling, for whatever voice ----


class Voice(Protocol):
    """Writes or reads a story: settled text is said, open text is picked."""

    def say(self, text: str) -> None: ...

    def pick(self, options: Options) -> Option: ...


def tell(voice: Voice) -> None:
    """Tell one story."""
    perform(voice, STORY, {})


def perform(voice: Voice, template: Template, facts: dict[str, str]) -> None:
    """Go through a template's parts in order; a choice adds its facts and goes on with its own rest."""
    for part in template:
        if isinstance(part, str):
            voice.say(part)
        elif isinstance(part, Recall):
            voice.say(facts[part.name])
        else:
            chosen = voice.pick(part if isinstance(part, Options) else TABLES[table_name(part, facts)])
            if isinstance(part, Choose):
                facts[part.name] = chosen.text
            facts.update(chosen.facts)
            perform(voice, chosen.rest, facts)


def table_name(part: Choose, facts: Mapping[str, str]) -> str:
    """The table that a choice is made from."""
    return facts[part.name] if part.by_fact else part.name


class Writer:
    """Turns choices, given by `choose` as indices, into text; keeps the choices and their nats."""

    def __init__(self, choose: Callable[[Options], int]) -> None:
        self.choose = choose
        self.parts: list[str] = []
        self.choices: list[int] = []
        self.nats = 0.0

    def say(self, text: str) -> None:
        self.parts.append(text)

    def pick(self, options: Options) -> Option:
        index = self.choose(options)
        self.choices.append(index)
        self.nats += options.nats[index]
        self.parts.append(options.texts[index])
        return options.options[index]


class Reader:
    """Turns text from `position` on into choices and their nats; raises `NotAStory` where it can't."""

    def __init__(self, text: str, position: int = 0) -> None:
        self.text = text
        self.position = position
        self.choices: list[int] = []
        self.nats = 0.0

    def say(self, text: str) -> None:
        if not self.text.startswith(text, self.position):
            raise self.mismatch((text,))
        self.position += len(text)

    def pick(self, options: Options) -> Option:
        for index, text in enumerate(options.texts):
            if self.text.startswith(text, self.position):
                self.choices.append(index)
                self.nats += options.nats[index]
                self.position += len(text)
                return options.options[index]
        raise self.mismatch(options.texts)

    def mismatch(self, expected: Sequence[str]) -> NotAStory:
        """The error at the first character that no expected text allows, or at the end of a cut text."""
        found = self.text[self.position : self.position + max(map(len, expected))]
        offset = self.position + max(shared_length(text, found) for text in expected)
        return NotAStory(offset, expected, found)


def shared_length(one: str, other: str) -> int:
    """How many characters two texts have in common at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


# ---- What others use ----


@dataclass(frozen=True, slots=True)
class Reading:
    """One story's choices (the index of each option taken, in order), their nats, and the offset after it."""

    choices: tuple[int, ...]
    nats: float
    end: int


def chance(seed: int, index: int) -> Callable[[Options], int]:
    """The choices of story `index` of corpus `seed`, by the one stream that every Python version shares."""
    if seed < 0 or index < 0:
        raise ValueError(f"A story's seed and index must be 0 or more; got seed {seed} and index {index}.")
    draw = random.Random(pair_number(seed, index)).random
    return lambda options: bisect_right(options.cumulative, int(draw() * options.total))


def pair_number(one: int, other: int) -> int:
    """A whole number that no other pair of whole numbers has (Cantor's pairing)."""
    return (one + other) * (one + other + 1) // 2 + other


def write_story(seed: int, index: int) -> str:
    """Story number `index` of corpus `seed`: a newline, about 500 ASCII characters, a newline."""
    writer = Writer(chance(seed, index))
    tell(writer)
    return "".join(writer.parts)


def write_stories(size: int, seed: int = 0, start: int = 0) -> str:
    """Whole stories of corpus `seed`, from number `start` on, of `size` characters or more together."""
    stories: list[str] = []
    while size > 0:
        story = write_story(seed, start + len(stories))
        stories.append(story)
        size -= len(story)
    return "".join(stories)


def read_story(text: str, start: int = 0) -> Reading:
    """Read the story that begins at offset `start`; raises `NotAStory` if none does."""
    reader = Reader(text, start)
    tell(reader)
    return Reading(tuple(reader.choices), reader.nats, reader.position)


def read_stories(text: str) -> Iterator[Reading]:
    """Read zero or more whole stories, one after the other; raises `NotAStory` where the text is none."""
    end = 0
    while end < len(text):
        reading = read_story(text, end)
        yield reading
        end = reading.end


def story_nats(text: str) -> float:
    """Exact -log p, in nats, of a text of zero or more whole stories; raises `NotAStory` for any other."""
    return math.fsum(reading.nats for reading in read_stories(text))


def read_prefix(text: str) -> int:
    """How many leading characters could start a run of stories: all, or up to the first impossible one."""
    try:
        for _ in read_stories(text):
            pass
    except NotAStory as problem:
        return problem.offset
    return len(text)


def check_options() -> None:
    """Assert what reading relies on: weights are positive and no option's text begins another of its set."""
    for options in ALL_OPTIONS:
        assert all(weight > 0 for weight in options.weights), options.texts
        for text in options.texts:
            matches = [other for other in options.texts if other.startswith(text)]
            assert matches == [text], f"{text!r} begins each of {matches}"
