"""Which characters a text is made of, and in which scripts its letters are written; knows nothing of languages."""

import unicodedata
from collections import Counter

import numpy as np

CODES = 0x110000  # every character Unicode can have
WAITING = 1 << 18  # short texts are counted together: one count of many costs what a count of one does
# The first word of a letter's Unicode name is its script, but for these.
NAMED = {
    "CJK": "Han", "KANGXI": "Han", "IDEOGRAPHIC": "Han", "KATAKANA-HIRAGANA": "Katakana", "FEMININE": "Latin",
    "MASCULINE": "Latin", "MICRO": "Greek", "OHM": "Greek", "KELVIN": "Latin", "ANGSTROM": "Latin", "MODIFIER": "Other",
    "MATHEMATICAL": "Other", "DOUBLE-STRUCK": "Other", "SCRIPT": "Other", "BLACK-LETTER": "Other", "NKO": "N'Ko",
}  # fmt: skip
WIDTHS = ("FULLWIDTH", "HALFWIDTH", "OLD", "NEW")  # the next word says which script
ENOUGH = 0.002  # share of the letters from which a script is named; the others are "Other"


class Characters:
    """How often each character comes: 9 MB, however long the text."""

    def __init__(self) -> None:
        self.counts = np.zeros(CODES, np.int64)
        self._waiting: list[str] = []
        self._length = 0

    def add(self, text: str) -> None:
        """Count one more text."""
        self._waiting.append(text)
        self._length += len(text)
        if self._length >= WAITING:
            self._count()

    def of(self, character: str) -> int:
        """How often this one came."""
        self._count()
        return int(self.counts[ord(character)])

    def present(self) -> dict[str, int]:
        """Every character that came, and how often, in Unicode's order."""
        self._count()
        return {chr(code): int(self.counts[code]) for code in np.flatnonzero(self.counts)}

    def scripts(self) -> dict[str, float]:
        """Share of the letters in each script, the largest first; sums to 1, or is empty without letters."""
        letters: Counter[str] = Counter()
        for character, times in self.present().items():
            if character.isalpha():
                letters[script(character)] += times
        total = letters.total()
        shares = {name: times / total for name, times in letters.most_common() if times >= ENOUGH * total}
        rest = 1 - sum(shares.values())
        if total and rest > 1e-12:
            shares["Other"] = shares.get("Other", 0.0) + rest
        return shares

    def _count(self) -> None:
        text = "".join(self._waiting)
        self._waiting, self._length = [], 0
        for start in range(0, len(text), WAITING):
            codes = np.frombuffer(text[start : start + WAITING].encode("utf-32-le", "surrogatepass"), np.uint32)
            found = np.bincount(codes)
            self.counts[: len(found)] += found


def script(letter: str) -> str:
    """The script of a letter, such as Latin, Cyrillic or Han."""
    words = unicodedata.name(letter, "OTHER").split()
    first = words[1] if words[0] in WIDTHS and len(words) > 1 else words[0]
    return NAMED.get(first, first.capitalize())


def script_shares(text: str) -> dict[str, float]:
    """Share of a text's letters in each script, the largest first."""
    characters = Characters()
    characters.add(text)
    return characters.scripts()


def in_words(shares: dict[str, float], most: int = 5) -> str:
    """{"Latin": 0.98, "Greek": 0.02} -> "Latin 98 %, Greek 2 %"; a share below a thousandth is left out."""
    shown = {name: share for name, share in shares.items() if share >= 0.001}
    parts = [f"{name} {100 * share:.{0 if share >= 0.1 else 1}f} %" for name, share in shown.items()]
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + more or "no letters"
