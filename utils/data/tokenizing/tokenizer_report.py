"""What a tokenizer does with real texts: sizes, tokens unused, a text with its cuts, what is lost. Draws itself."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from utils.data.tokenizing.round_trip import Loss, count_loss
from utils.data.tokenizing.text_pieces import without_surrogates
from utils.data.tokenizing.tokenizer import Tokenizer
from utils.runtime.table import Table, escape

MOST_TEXT = 20_000_000  # characters that are looked at
LOSS_TEXT = 1_000_000  # characters whose round trip is tried
SHOWN = 12  # tokens of a list
SAMPLES = 3
SAMPLE = 240  # characters of each sample
COLOURS = ("#4c8dff", "#2fb170", "#d99a1c", "#d065c8", "#e0645c")  # one token after the other; drawn at low strength


@dataclass(frozen=True)
class TokenizerReport:
    """What was found; `str()` for a terminal, HTML in a notebook, `to_dict()` for a machine."""

    kind: str
    vocab_size: int
    special_tokens: dict[str, int]
    texts: int
    characters: int
    bytes: int
    tokens: int
    bytes_per_token: float
    characters_per_token: float
    unknown_rate: float
    """Share of the tokens that stand for something the vocabulary cannot say."""
    unused: int
    """Tokens these texts never use, the special ones left out."""
    unused_examples: list[str]
    longest: list[str]
    """The longest tokens."""
    most_used: list[tuple[str, int]]
    samples: list[list[str]]
    """Texts as lists of their tokens."""
    loss: Loss

    def to_dict(self) -> dict[str, Any]:
        """Everything, as types that JSON has."""
        return {
            **{name: value for name, value in asdict(self).items() if name != "loss"},
            "most_used": [list(pair) for pair in self.most_used],
            "unused_share": self.unused_share,
            "loss": self.loss.to_dict(),
        }

    @property
    def unused_share(self) -> float:
        """Unused tokens of all that are not special."""
        return self.unused / max(self.vocab_size - len(self.special_tokens), 1)

    def table(self) -> Table:
        """The numbers."""
        special = ", ".join(f"{token} = {i}" for token, i in list(self.special_tokens.items())[:SHOWN])
        more = len(self.special_tokens) - SHOWN
        used = f"{self.tokens:,} tokens for {self.characters:,} characters of {self.texts:,} texts"
        rows = [
            ("kind", self.kind),
            ("vocabulary", f"{self.vocab_size:,} tokens"),
            ("special tokens", (special or "none") + (f" and {more} more" if more > 0 else "")),
            ("tried on", used if self.tokens else "nothing: no text was given"),
        ]
        if self.tokens:
            rows += [
                ("bytes per token", f"{self.bytes_per_token:.3f} ({self.characters_per_token:.3f} characters)"),
                ("unknown tokens", f"{self.unknown_rate:.2%}" if self.unknown_rate else "none"),
                ("unused tokens", f"{self.unused:,} ({self.unused_share:.1%}){_listed(self.unused_examples)}"),
                ("most used", "  ".join(f"{quoted(text)} {n:,}" for text, n in self.most_used)),
            ]
        rows.append(("longest tokens", "  ".join(map(quoted, self.longest))))
        if self.tokens:
            rows.append(("round trip", str(self.loss)))
        return Table(rows)

    def __str__(self) -> str:
        samples = ["|".join(map(visible, sample)) for sample in self.samples]
        return "\n\n".join([repr(self.table()), *(["Texts with their cuts:", *samples] if samples else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        style = "white-space:pre-wrap;max-width:84ch;margin:8px 0;font-family:monospace;font-size:13px;line-height:1.7"
        samples = "".join(f'<div style="{style}">{coloured(sample)}</div>' for sample in self.samples)
        return self.table()._repr_html_() + samples


def inspect_tokenizer(tokenizer: Tokenizer, texts: str | Iterable[str] = ()) -> TokenizerReport:
    """Look at a tokenizer, and at what it makes of the first MOST_TEXT characters of these texts."""
    looked = _first([texts] if isinstance(texts, str) else texts, MOST_TEXT)
    used = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for i in range(0, len(looked), 256):
        for ids in tokenizer.encode_batch(looked[i : i + 256]):
            used += np.bincount(ids, minlength=len(used))
    known = tokenizer.known_ids()
    special = set(tokenizer.special_tokens.values())
    unused = [i for i in known if not used[i] and i not in special]
    longest = sorted((i for i in known if i not in special), key=lambda i: (-len(tokenizer.token_text(i)), i))
    order = sorted(np.flatnonzero(used).tolist(), key=lambda i: (-used[i], i))
    characters, tokens = sum(map(len, looked)), int(used.sum())
    size = sum(len(text.encode()) for text in looked)
    unknown = tokenizer.unknown_id
    read = tokenizer.token_text
    return TokenizerReport(
        kind=str(tokenizer.origin.get("name") or tokenizer.origin.get("kind") or "made elsewhere"),
        vocab_size=tokenizer.vocab_size,
        special_tokens=tokenizer.special_tokens,
        texts=len(looked),
        characters=characters,
        bytes=size,
        tokens=tokens,
        bytes_per_token=size / max(tokens, 1),
        characters_per_token=characters / max(tokens, 1),
        unknown_rate=int(used[unknown]) / max(tokens, 1) if unknown is not None else 0.0,
        unused=len(unused) if tokens else 0,
        unused_examples=[read(i) for i in unused[:SHOWN]] if tokens else [],
        longest=[read(i) for i in longest[:SHOWN]],
        most_used=[(read(i), int(used[i])) for i in order[:SHOWN]],
        samples=[list(map(read, tokenizer.encode(text))) for text in _samples(looked)],
        loss=count_loss(tokenizer, _first(looked, LOSS_TEXT)),
    )


def quoted(text: str) -> str:
    """A token as one word of a list: spaces and line ends shown, so that they can be seen."""
    return visible(text).replace(" ", "␣")


def visible(text: str) -> str:
    """A token on one line: what cannot be seen, as its escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def coloured(tokens: list[str]) -> str:
    """Tokens in turning colours, as HTML."""
    spans = []
    for i, token in enumerate(tokens):
        shown = escape(visible(token)) + ("<br>" if token.endswith("\n") else "")
        colour = COLOURS[i % len(COLOURS)]
        spans.append(f'<span style="background:{colour}33;border-left:1px solid {colour}">{shown}</span>')
    return "".join(spans)


def _listed(tokens: list[str]) -> str:
    return f": {'  '.join(map(quoted, tokens))}" if tokens else ""


def _first(texts: Iterable[str], most: int) -> list[str]:
    """The first texts, `most` characters together."""
    taken: list[str] = []
    for text in texts:
        if most <= 0:
            break
        taken.append(without_surrogates(text[:most]))
        most -= len(text)
    return taken


def _samples(texts: list[str]) -> list[str]:
    """The beginnings of texts spread over all of them; of one long text, parts spread over it."""
    texts = [text for text in texts if text.strip()]
    if len(texts) == 1 and len(texts[0]) > SAMPLES * SAMPLE:
        step = len(texts[0]) // SAMPLES
        starts = [texts[0].rfind(" ", 0, i * step) + 1 for i in range(SAMPLES)]
        return [texts[0][start : start + SAMPLE] for start in starts]
    step = max(1, len(texts) // SAMPLES)
    return [text.lstrip("\n")[:SAMPLE] for text in texts[::step][:SAMPLES]]
