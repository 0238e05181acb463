"""A look at documents before anything is learned from them: one pass, flat memory; advises, and changes nothing."""

from array import array
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from utils.data.documents import Document
from utils.data.looking.encoding import Encoding
from utils.data.looking.personal import Personal, masked
from utils.data.looking.repeats import Repeats
from utils.data.looking.report import DataReport, Finding, bars
from utils.data.looking.scripts import Characters, in_words

if TYPE_CHECKING:
    from utils.data.tokenizing.tokenizer import Tokenizer

LIMIT = 50_000_000  # characters that are looked at, if nothing else is said
SAMPLE = 200_000  # characters that are cut into tokens, to count those
LINES = 100_000  # different lines that are counted; those of a whole corpus would fill the memory
SHORT_LINE = 20  # characters; shorter lines ("}", "* * *") repeat in any text
REPEATED = 0.10  # share of the documents from which a line is boilerplate: the foot of a page, not a saying
FEW = 20  # documents; below it no share of them says much
LOPSIDED = 10.0  # times as many texts in the largest class as in the smallest
LONG_LINE = 100_000  # characters; no writer writes such a line
TINY = 16  # characters; half of the documents are shorter: is a document what it was meant to be?
SECOND_SCRIPT = 0.10  # share of the letters from which another script is worth a word
UNKNOWN = 0.001  # share of the tokens from which unknown ones are more than a stray character


class QualityReport(DataReport):
    """What `check_documents` found."""


class Lengths(NamedTuple):
    """Characters per document: the shortest, the 5th, 50th and 95th percentile, the longest."""

    least: int
    low: int
    median: int
    high: int
    most: int


def check_documents(
    documents: Iterable[Document], limit_characters: int = LIMIT, tokenizer: "Tokenizer | None" = None
) -> QualityReport:
    """Look at the first `limit_characters` of the documents, in order.

    With a tokenizer, tokens that stand for something it does not know are counted, too. Nothing raises: no documents
    at all, or none with text, is a finding of severity "stop".
    """
    look = Look()
    for document in documents:
        if look.characters >= limit_characters:
            look.whole = False
            break
        look.add(document, limit_characters - look.characters)
    return look.report(tokenizer)


def words_of(document: Document) -> str:
    """Everything a document says, as one text: a pair's two sides, a chat's messages, one per line."""
    if document.messages is not None:
        return "\n".join(message.get("content") or "" for message in document.messages)
    return document.text if document.target is None else f"{document.text}\n{document.target}"


class Look:
    """What is kept of all documents seen: numbers, and a few examples."""

    def __init__(self) -> None:
        self.characters, self.whole = 0, True
        self.lengths = array("Q")  # characters of each document
        self.empty: list[str] = []  # where the first ones stand
        self.n_empty = 0
        self.longest_line, self.longest_where = 0, ""
        self.alphabet, self.encoding, self.personal, self.repeats = Characters(), Encoding(), Personal(), Repeats()
        self.lines: Counter[str] = Counter()  # in how many documents each line stands
        self.labels: Counter[str] = Counter()
        self.n_answered, self.unanswered = 0, 0
        self.sample: list[str] = []
        self.sampled = 0

    def add(self, document: Document, room: int) -> None:
        """Look at one more; of a document longer than `room`, at its beginning."""
        text = words_of(document)
        whole = len(text) <= room
        self.whole, text = self.whole and whole, text[:room]
        self.lengths.append(len(text))
        self.characters += len(text)
        self._answers(document)
        if document.label is not None:
            self.labels[document.label] += 1
        if not text or text.isspace():
            self.n_empty += 1
            self.empty += [document.where] if len(self.empty) < 3 and document.where else []
            return
        self.alphabet.add(text)
        self.encoding.add(text, document.where)
        self.personal.add(text, document.where)
        if whole:
            self.repeats.add(document, len(text))
        self._lines(text, document.where)
        if self.sampled < SAMPLE:
            self.sample.append(text[: SAMPLE - self.sampled])
            self.sampled += len(self.sample[-1])

    def _lines(self, text: str, where: str) -> None:
        lines = text.split("\n")
        longest = max(map(len, lines))
        if longest > self.longest_line:
            self.longest_line, self.longest_where = longest, where
        full = len(self.lines) >= LINES
        for line in {stripped[:200] for line in lines[:LINES] if len(stripped := line.strip()) >= SHORT_LINE}:
            if not full or line in self.lines:
                self.lines[line] += 1

    def _answers(self, document: Document) -> None:
        if document.messages is not None:
            answers = [m.get("content") for m in document.messages if m.get("role") == "assistant"]
        elif document.target is not None:
            answers = [document.target]
        else:
            return
        self.n_answered += 1
        self.unanswered += not any(answer and answer.strip() for answer in answers)

    def report(self, tokenizer: "Tokenizer | None") -> QualityReport:
        """Every check, those that stop first to be asked; nothing more is asked of no documents."""
        findings = [self.check_empties()]
        if findings[0].severity != "stop":
            findings += [self.check_lengths(), self.check_longest_line(), *self.repeats.findings()]
            findings += [*self.encoding.findings(self.alphabet), self.check_scripts(), self.check_lines()]
            findings += [self.check_personal()]
            findings += [self.check_classes()] if self.labels else []
            findings += [self.check_answers()] if self.n_answered else []
            findings += self.check_tokens(tokenizer) if tokenizer is not None else []
        note = (
            ""
            if self.whole
            else f"Looked at the first {self.characters:,} characters ({len(self.lengths):,} documents) only."
        )
        return QualityReport("Quality", findings, note)

    def check_empties(self) -> Finding:
        """Documents without a word teach nothing and are left out; without any other there is nothing to learn."""
        n = len(self.lengths)
        values = {"documents": n, "empty": self.n_empty, "characters": self.characters}
        if n == self.n_empty:
            told = f"all {n:,} documents are empty" if n else "there are no documents"
            return Finding("documents", "stop", n, told, "Look at data.path and the column data.text_field.", values)
        told = f"{n:,} with {self.characters:,} characters"
        if not self.n_empty:
            return Finding("documents", "ok", n, f"{told}, none empty", values=values)
        first = f", the first: {', '.join(self.empty)}" if self.empty else ""
        severity = "warning" if self.n_empty > n / 10 else "note"
        advice = "Empty documents are left out. Many of them: is data.text_field the right column?"
        return Finding("documents", severity, n, f"{told}; {self.n_empty:,} of them empty{first}", advice, values)

    def check_lengths(self) -> Finding:
        """How long documents are, as percentiles and as a histogram on a scale of powers of two."""
        lengths = np.frombuffer(self.lengths, np.uint64)
        lengths = lengths[lengths > 0].astype(np.int64)
        at = Lengths(*(int(x) for x in np.percentile(lengths, (0, 5, 50, 95, 100), method="nearest")))
        powers = np.floor(np.log2(lengths)).astype(int)
        counts = np.bincount(powers)[powers.min() :].tolist()
        edges = [float(1 << (int(powers.min()) + i)) for i in range(len(counts) + 1)]
        told = f"characters per document: half have {at.median:,} or more; 5 % less than {at.low:,}, "
        told += f"5 % more than {at.high:,}; the longest {at.most:,}"
        if len(lengths) <= FEW:
            told = f"characters per document: {at.least:,} to {at.most:,}"
        short = at.median < TINY and len(lengths) > FEW
        advice = f"Half of the documents have fewer than {TINY} characters: is one line one document (data.document)?"
        picture = bars(counts, edges, "documents", "characters") if len(lengths) > FEW else ""
        values = {**at._asdict(), "edges": edges, "counts": counts}
        return Finding("length", "note" if short else "ok", at.median, told, advice if short else "", values, picture)

    def check_longest_line(self) -> Finding:
        """A line of a hundred thousand characters is data in a text, or a text whose line ends were lost."""
        n, long = self.longest_line, self.longest_line > LONG_LINE
        where = f" ({self.longest_where})" if long and self.longest_where else ""
        advice = "Encoded data or a program written by a program? A data.hook can leave such documents out."
        return Finding("longest line", "note" if long else "ok", n, f"{n:,} characters{where}", advice if long else "")

    def check_scripts(self) -> Finding:
        """In which scripts the letters are written."""
        shares = self.alphabet.scripts()
        second = sorted(shares.values())[-2] if len(shares) > 1 else 0.0
        mixed = second >= SECOND_SCRIPT
        advice = "Several scripts: is that meant? A trained tokenizer then needs more tokens (data.vocab_size)."
        return Finding("scripts", "note" if mixed else "ok", max(shares.values(), default=0.0),
                       f"letters: {in_words(shares)}", advice if mixed else "", {"shares": shares})  # fmt: skip

    def check_lines(self) -> Finding:
        """Lines that stand in many documents: menus, headers, licences. They are learned by heart first."""
        n = len(self.lengths) - self.n_empty
        found = [(line, times) for line, times in self.lines.most_common(5) if times > REPEATED * n] if n >= FEW else []
        share = self.lines.most_common(1)[0][1] / n if self.lines and n >= FEW else 0.0
        if not found:
            told = f"no line stands in more than {REPEATED:.0%} of the documents".replace("%", " %")
            return Finding("repeated lines", "ok", share, told if n >= FEW else "too few documents to say")
        lines = "; ".join(f"in {times / n * 100:.0f} %: {_short(line)!r}" for line, times in found)
        return Finding("repeated lines", "warning", share, f"the same line in many documents, {lines}",
                       "Boilerplate is learned before anything else. A data.hook can cut it out.",
                       {"lines": [{"line": _short(line), "documents": times} for line, times in found]})  # fmt: skip

    def check_personal(self) -> Finding:
        """What looks like somebody's: a model may repeat it word for word (Carlini et al. 2021)."""
        found = self.personal
        if not found.total:
            return Finding("personal data", "ok", 0, "nothing that looks like an e-mail, number, account or key")
        told = "; ".join(
            f"{n:,} x {kind}, such as {', '.join(found.examples[kind])}" for kind, n in found.counts.items()
        )
        advice = "A model may repeat such strings word for word. Mask them or leave the documents out (data.hook)."
        return Finding("personal data", "warning", found.total, told, advice, {"counts": found.counts})

    def check_classes(self) -> Finding:
        """How many texts each class has."""
        ordered = self.labels.most_common()
        ratio = ordered[0][1] / ordered[-1][1]
        told = f"{len(ordered)}: " + ", ".join(f"{_short(name)!r} {n:,}" for name, n in ordered[:8])
        told += f" and {len(ordered) - 8} more, the rarest {ordered[-1][1]:,}" if len(ordered) > 8 else ""
        values = {"counts": dict(ordered)}
        if len(ordered) == 1:
            return Finding("classes", "warning", 1, told, "With one class there is nothing to tell apart.", values)
        advice = f"The largest class has {ratio:.0f} times the texts of the smallest: accuracy alone will flatter."
        lopsided = ratio >= LOPSIDED
        return Finding("classes", "warning" if lopsided else "ok", ratio, told, advice if lopsided else "", values)

    def check_answers(self) -> Finding:
        """Only answers are learned: a pair or a chat without one teaches nothing."""
        n, none = self.n_answered, self.unanswered
        severity = "ok" if not none else "warning" if none > n / 100 else "note"
        told = f"{none:,} of {n:,} records have no answer" if none else f"each of {n:,} records has one"
        return Finding("answers", severity, none, told, "Nothing is learned from a record without one." if none else "")

    def check_tokens(self, tokenizer: "Tokenizer") -> list[Finding]:
        """How much text a token holds, and how much of the text the tokenizer cannot say."""
        ids = [token for encoded in tokenizer.encode_batch(self.sample) for token in encoded]
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in self.sample)
        present = self.alphabet.present()
        strange = tokenizer.unknown_characters("".join(present))
        times = sum(present[character] for character in strange)
        unknown = {number for name, number in tokenizer.special_tokens.items() if name in ("[UNK]", "<unk>")}
        rate = max(sum(token in unknown for token in ids) / max(1, len(ids)), times / max(1, self.characters))
        shown = f", among them {' '.join(map(_visible, strange[:12]))}" if strange else ""
        told = f"{100 * rate:.3g} % unknown to the tokenizer{shown}" if rate else "the tokenizer knows every character"
        severity = "ok" if not rate else "warning" if rate > UNKNOWN else "note"
        advice = "What a tokenizer does not know cannot be learned or written: bpe and byte know everything."
        each = size / max(1, len(ids))
        return [
            Finding("unknown tokens", severity, rate, told, advice if rate else ""),
            Finding("tokens", "ok", each, f"{each:.2f} bytes of text per token, over {size:,} bytes"),
        ]


def _short(line: str) -> str:
    """The beginning of a line, for a report."""
    line = masked(line)
    return line if len(line) <= 60 else f"{line[:57]}..."


def _visible(character: str) -> str:
    return character if character.isprintable() else f"U+{ord(character):04X}"
