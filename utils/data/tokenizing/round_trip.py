"""What a text loses on its way through a tokenizer and back; knows a tokenizer only by `encode_batch` and `decode`."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from typing import Any, Protocol

from utils.data.tokenizing.text_pieces import pieces, without_surrogates

PART = 256  # characters compared at once, about
TOGETHER = 1024  # parts encoded at once
EXAMPLES = 5
AROUND = 12  # characters shown before and after a difference


class Codec(Protocol):
    """Anything that turns texts into ids and ids into a text."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Loss:
    """What was different after a round trip; `examples` are (before, after), `kinds` counts parts by what they lost."""

    characters: int
    """Characters that were looked at."""
    lost: int
    """Characters that did not come back as they were."""
    kinds: dict[str, int]
    examples: tuple[tuple[str, str], ...]

    @property
    def share(self) -> float:
        """Lost characters of all."""
        return self.lost / max(self.characters, 1)

    def to_dict(self) -> dict[str, Any]:
        """The same for a machine."""
        return {
            "characters": self.characters,
            "lost": self.lost,
            "kinds": self.kinds,
            "examples": [list(pair) for pair in self.examples],
        }

    def __str__(self) -> str:
        if not self.lost:
            return f"every text comes back exactly ({self.characters:,} characters tried)"
        kinds = ", ".join(self.kinds)
        shown = "; ".join(f"{before!r} comes back as {after!r}" for before, after in self.examples[:2])
        return f"{self.lost:,} of {self.characters:,} characters do not come back ({kinds}): {shown}"


def count_loss(tokenizer: Codec, texts: str | Iterable[str]) -> Loss:
    """What encoding and decoding changes in these texts, part by part (a lone surrogate counts as U+FFFD)."""
    characters = lost = 0
    kinds: Counter[str] = Counter()
    examples: dict[str, tuple[str, str]] = {}
    parts = (part for text in ([texts] if isinstance(texts, str) else texts) for part in _parts(text))
    while batch := list(islice(parts, TOGETHER)):
        characters += sum(map(len, batch))
        for before, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            after = tokenizer.decode(ids)
            if after == before:
                continue
            kind = _kind(before, after)
            kinds[kind] += 1
            compared = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
            changes = [change for change in compared if change[0] != "equal"]
            lost += sum(max(i2 - i1, j2 - j1) for _, i1, i2, j1, j2 in changes)
            _, i1, i2, j1, j2 = changes[0]
            if kind not in examples:
                examples[kind] = (
                    before[max(0, i1 - AROUND) : min(i2, i1 + AROUND) + AROUND],
                    after[max(0, j1 - AROUND) : min(j2, j1 + AROUND) + AROUND],
                )
    return Loss(characters, lost, dict(kinds.most_common()), tuple(examples.values())[:EXAMPLES])


def _parts(text: str) -> Iterator[str]:
    # Many tokenizers drop or add a space at the very start of a text, so no part but the first starts with one.
    for i, part in enumerate(pieces(without_surrogates(text), PART)):
        yield part[1:] if i and part.startswith(" ") else part


def _kind(before: str, after: str) -> str:
    """What was lost, in words: the first of these that explains all of it."""
    plain = (
        ("upper case", str.lower),
        ("spaces and line ends", lambda text: "".join(text.split())),
        ("form of a character (Unicode normalisation)", lambda text: unicodedata.normalize("NFKC", text)),
        ("case and spaces", lambda text: "".join(text.lower().split())),
        ("accents", lambda text: _without_marks("".join(text.lower().split()))),
    )
    return next((kind for kind, same in plain if same(before) == same(after)), "characters it does not know")


def _without_marks(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
