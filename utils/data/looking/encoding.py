"""Text that was read in the wrong encoding, and characters that no writer types; decodes nothing itself."""

import re

from utils.data.looking.report import Finding
from utils.data.looking.scripts import Characters

REPLACEMENT, MARK = "\N{REPLACEMENT CHARACTER}", "\N{ZERO WIDTH NO-BREAK SPACE}"  # the second: a byte order mark
# The two or three bytes of one UTF-8 character, each read as a letter of cp1252: "é" -> "Ã©", "’" -> "â€™". After Ã
# no quotes and dashes, which may follow a capital letter in Portuguese.
MOJIBAKE = re.compile(
    r"[ÃÐÑ][\u0080-\u00bf]|[ÃÐÑ][€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ]|Â[\u0080-\u00bf]|â€[\u0080-\u00bf™œž˜¦¢“”šŸ¡]|ï»¿|ðŸ"
)
FIRST = "ÃÂâÐÑïð"
CONTROLS = [chr(c) for c in (*range(9), 11, *range(14, 32), *range(127, 160)) if c != 0x85]
CONTROL = re.compile(f"[{re.escape(''.join(CONTROLS))}]")
OFTEN = 1e-4  # share of the characters from which it is not a stray one


class Encoding:
    """Counts of what looks wrong, with where each kind stands first."""

    def __init__(self) -> None:
        self.where: dict[str, str] = {}
        self.mojibake, self.crlf = 0, 0
        self.example = ""

    def add(self, text: str, where: str) -> None:
        """Look at one more text. What is one character is counted elsewhere, with all characters."""
        self.crlf += text.count("\r\n")
        if REPLACEMENT in text:
            self.where.setdefault("replaced", where)
        if not text.isascii() and any(letter in text for letter in FIRST):
            found = MOJIBAKE.findall(text)
            self.mojibake += len(found)
            if found and not self.example:
                self.example = found[0]
                self.where["mojibake"] = where
        if "controls" not in self.where and CONTROL.search(text):
            self.where["controls"] = where

    def findings(self, alphabet: Characters) -> list[Finding]:
        """What is wrong, as one finding about the characters and one about line ends."""
        return [self._characters(alphabet), self._line_ends(alphabet)]

    def _characters(self, alphabet: Characters) -> Finding:
        present = alphabet.present()
        total = max(1, sum(present.values()))
        values = {
            "replaced": present.get(REPLACEMENT, 0),
            "mojibake": self.mojibake,
            "controls": sum(present.get(control, 0) for control in CONTROLS),
            "marks": present.get(MARK, 0),
        }
        words = {
            "replaced": "U+FFFD, where bytes were lost when this was decoded",
            "mojibake": f"like {self.example!r}: UTF-8 that was read as another encoding",
            "controls": "control characters",
            "marks": "U+FEFF, byte order marks inside the text",
        }
        advice = {
            "replaced": "What was lost cannot be brought back here: decode the original files again.",
            "mojibake": "Read the original files as UTF-8, or mend each text in a data.hook (the package ftfy can).",
            "controls": "Terminal codes or binary data? A data.hook can remove them.",
            "marks": "They come from joined files; a data.hook can remove them.",
        }
        bad = [name for name, number in values.items() if number]
        number = sum(values.values())
        if not bad:
            told = "no lost bytes, no control characters, nothing decoded twice"
            return Finding("encoding", "ok", 0, told, values=values)
        told = "; ".join(
            f"{values[name]:,} x {words[name]}" + (f" (first in {self.where[name]})" if self.where.get(name) else "")
            for name in bad
        )
        severity = "warning" if values["replaced"] or number > OFTEN * total else "note"
        return Finding("encoding", severity, number, told, " ".join(advice[name] for name in bad), values)

    def _line_ends(self, alphabet: Characters) -> Finding:
        values = {"\\n": alphabet.of("\n") - self.crlf, "\\r\\n": self.crlf, "\\r": alphabet.of("\r") - self.crlf}
        used = [name for name, number in values.items() if number]
        told = ", ".join(f"{values[name]:,} x {name}" for name in used) or "none: each document is one line"
        if used in ([], ["\\n"], ["\\r\\n"]):
            return Finding("line ends", "ok", len(used), told, values=values)
        advice = "More than one kind of line end, or an old one: a model learns each. A data.hook can write all as \\n."
        return Finding("line ends", "note", len(used), told, advice, values)
