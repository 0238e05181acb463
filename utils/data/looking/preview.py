"""Real examples as a model gets them: each token coloured, with what is learned of it. Draws itself; knows no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.config.schema import DataConfig

if TYPE_CHECKING:
    from utils.data.storing.token_store import TokenStore
    from utils.data.tokenizing.tokenizer import Tokenizer

IGNORED = -100
SHOWN = 400  # tokens of a row that are drawn; a page of thousands says no more
# Behind words in the page's own colour: pale enough to read them on white and on black.
COLOURS = ("59,130,246", "16,185,129", "245,158,11", "236,72,153", "139,92,246")
VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\0": "␀"}
PROSE = (
    "max-width:84ch;margin:2px 0 10px;font-family:ui-monospace,SFMono-Regular,Menlo,monospace;font-size:12.5px;"
    "line-height:1.95;overflow-wrap:anywhere;color:inherit"
)
END = "</span><wbr>"  # of a token: a line may break there
DOCUMENT = "margin:3px 0;padding-left:8px;border-left:2px solid rgba(128,128,128,.5)"  # one of several in a row
LEARNED = {
    "causal": "Each token is predicted from those before it.",
    "masked": "Framed tokens are hidden and have to be found from all the others.",
    "seq2seq": "What is written is predicted from all that is read and the tokens before it.",
    "classification": "The class is predicted from all tokens.",
}
FADED = "Faded tokens are only read: nothing is learned from them."


class Piece(NamedTuple):
    """One token of a row."""

    id: int
    text: str
    kind: str  # "learned", "read", "hidden" (to be found) or "special"
    told: str  # what there is to say about it
    document: int  # which document of the row it is of, from 1


@dataclass(frozen=True)
class Row:
    """One row of a batch: its tokens without the padding behind them."""

    name: str
    pieces: tuple[Piece, ...]
    padding: int = 0
    note: str = ""


@dataclass(frozen=True)
class Preview:
    """Rows of a training batch. In a terminal tokens are parted by bars; in a notebook each has a colour."""

    title: str
    rows: tuple[Row, ...]
    words: str

    def __repr__(self) -> str:
        lines = [self.title]
        for row in self.rows:
            lines += ["", f"{row.name}: {row.note}".removesuffix(": "), *_plain_row(row)]
        return "\n".join([*lines, "", self.words])

    def _repr_html_(self) -> str:
        rows = "".join(map(_html_row, self.rows))
        return (
            '<div style="color:inherit;font-family:system-ui,sans-serif;font-size:13px;margin:8px 0">'
            f'<div style="font-weight:600;margin:0 0 6px">{escape(self.title)}</div>{rows}'
            f'<div style="opacity:.75;max-width:84ch">{escape(self.words)} Point at a token for its number.</div></div>'
        )


def preview(config: DataConfig, n: int = 1) -> Preview:
    """The first `n` examples of a run on `config`, cut, packed and labelled as training gets them.

    Raises as `open_store` does.
    """
    from utils.data.reading.sources import pin
    from utils.data.storing.token_store import open_store

    config, _ = pin(config)
    return preview_store(open_store(config), config, n)


def preview_store(store: "TokenStore", config: DataConfig, n: int = 1) -> Preview:
    """The same of a store that is open: for a built-in model, or one of the task that data.task names."""
    from utils.data.batching.tasks import build_batches

    task = "causal" if config.task == "auto" else config.task
    classes = store.labels
    train, _ = build_batches(store, config, n, 1, 0, task, packs_documents=True, supports_attention_mask=True)
    rows = rows_of(train.batch(0), task, store.tokenizer, classes, n)
    words = [LEARNED[task]]
    if any(_partly(row) and not _has_hidden(row) for row in rows):
        words.append(FADED)
    title = f"What a model gets: {n} example{'s' * (n > 1)} of at most {config.seq_len} tokens"
    return Preview(title, rows, " ".join(words))


def rows_of(batch: Any, task: str, tokenizer: "Tokenizer", classes: Sequence[str] = (), n: int = 1) -> tuple[Row, ...]:
    """The first `n` examples of a batch (inputs, labels, extra) as rows. A label of -100 is not learned."""
    documents = batch.extra.get("documents", batch.extra.get("attention_mask"))
    shown: list[Row] = []
    inputs = [part[:n].tolist() for part in batch.inputs]  # each n rows of token ids
    labels = batch.labels[:n].tolist()
    for i in range(len(inputs[0])):
        name = f"example {i + 1}" if len(inputs[0]) > 1 else "example"
        part = [1] * len(inputs[0][i]) if documents is None else documents[i].tolist()
        if task == "classification":
            told = classes[labels[i]] if labels[i] < len(classes) else str(labels[i])
            shown.append(_row(name, inputs[0][i], part, [False] * len(part), tokenizer, f"its class is {told!r}"))
        elif task == "seq2seq" and len(inputs) > 1:
            shown.append(_row(f"{name}, what is read", inputs[0][i], part, [False] * len(part), tokenizer))
            written = [*inputs[1][i][:1], *(x for x in labels[i] if x != IGNORED)]
            learned = [False, *[True] * (len(written) - 1)]
            shown.append(_row(f"{name}, what is written", written, [1] * len(written), learned, tokenizer))
        elif task == "masked":
            shown.append(_masked(name, inputs[0][i], part, labels[i], tokenizer))
        else:
            shown.append(_causal(name, inputs[0][i], part, labels[i], tokenizer))
    return tuple(shown)


def _causal(name: str, ids: list[int], documents: list[int], labels: list[int], tokenizer: "Tokenizer") -> Row:
    """Label t is the token after token t, which is learned if label t counts. A document's last token is no input."""
    pieces: list[Piece] = []
    for _, run in groupby(range(len(ids)), key=lambda i: documents[i]):
        asked = IGNORED
        for i in run:
            pieces.append(_piece(ids[i], documents[i], "read" if asked == IGNORED else "learned", "", tokenizer))
            asked = labels[i]
        if asked != IGNORED:
            pieces.append(_piece(asked, documents[i], "learned", "", tokenizer))
    return _without_padding(name, pieces, "")


def _masked(name: str, ids: list[int], documents: list[int], labels: list[int], tokenizer: "Tokenizer") -> Row:
    pieces, mask = [], tokenizer.vocab_size if tokenizer.mask_id is None else tokenizer.mask_id
    for i, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label == IGNORED:
            pieces.append(_piece(token, documents[i], "read", "", tokenizer))
            continue
        given = _text(token, tokenizer)
        told = "left as it is" if token == label else f"the model sees {given!r}"
        pieces.append(_piece(label, documents[i], "hidden", told, tokenizer))
    asked = [(token, label) for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    left = sum(token == label for token, label in asked)
    replaced = sum(token != label and token != mask for token, label in asked)
    note = f"{len(asked)} of {sum(map(bool, documents))} tokens are asked for: {len(asked) - left - replaced} hidden, "
    return _without_padding(name, pieces, note + f"{replaced} replaced by another token, {left} left as they are")


def _row(
    name: str, ids: list[int], documents: list[int], learned: list[bool], tokenizer: "Tokenizer", note: str = ""
) -> Row:
    pieces = [
        _piece(token, documents[i], "learned" if learned[i] else "read", "", tokenizer) for i, token in enumerate(ids)
    ]
    return _without_padding(name, pieces, note)


def _without_padding(name: str, pieces: list[Piece], note: str) -> Row:
    filled = [piece for piece in pieces if piece.document]
    count = len({piece.document for piece in filled})
    notes = [note] if note else []
    notes += [f"{count} documents, which do not see each other"] if count > 1 else []
    return Row(name, tuple(filled), len(pieces) - len(filled), "; ".join(notes))


def _piece(token: int, document: int, kind: str, told: str, tokenizer: "Tokenizer") -> Piece:
    return Piece(token, _text(token, tokenizer), kind, told, document)


def _text(token: int, tokenizer: "Tokenizer") -> str:
    """How a token reads; the mask a model has a row for and the tokenizer no token is [MASK]."""
    return tokenizer.token_text(token) if token < tokenizer.vocab_size else "[MASK]"


def _visible(text: str) -> str:
    return "".join(VISIBLE.get(c, c if c.isprintable() else f"<{ord(c):02X}>") for c in text)


def _partly(row: Row) -> bool:
    """Whether some tokens of the row are learned and others only read."""
    return len({piece.kind for piece in row.pieces[1:]}) > 1


def _plain_row(row: Row) -> list[str]:
    """Tokens parted by bars; a line for each document, and for each stretch of it that is learned or only read."""
    lines, parted = [], _partly(row) and not _has_hidden(row)
    for (_, kind), run in groupby(row.pieces[:SHOWN], key=lambda piece: (piece.document, parted and piece.kind)):
        text = "|".join(f"[{_visible(p.text)}]" if p.kind == "hidden" else _visible(p.text) for p in run)
        lines.append(f"  {kind:<8}{text}" if kind else f"  {text}")
    more = len(row.pieces) - SHOWN
    lines += [f"  ... and {more:,} more tokens"] if more > 0 else []
    lines += [f"  and {row.padding:,} of padding, which nothing looks at"] if row.padding else []
    return lines


def _has_hidden(row: Row) -> bool:
    return any(piece.kind == "hidden" for piece in row.pieces)


def _html_row(row: Row) -> str:
    fades, pieces = _partly(row) and not _has_hidden(row), list(enumerate(row.pieces[:SHOWN]))
    parts = [
        _without_last_break("".join(_span(piece, i, fades) for i, piece in run))
        for _, run in groupby(pieces, key=lambda item: item[1].document)
    ]
    style = DOCUMENT if len(parts) > 1 else "margin:0"
    body = "".join(f'<div style="{style}">{part}</div>' for part in parts)
    more = len(row.pieces) - SHOWN
    tail = [f"… and {more:,} more tokens"] if more > 0 else []
    tail += [f"… and {row.padding:,} of padding, which nothing looks at"] if row.padding else []
    tails = "".join(f'<div style="opacity:.75;margin:-8px 0 10px">{words}</div>' for words in tail)
    note = f": {escape(row.note)}" if row.note else ""
    head = f'<div style="opacity:.9"><b style="font-weight:600">{escape(row.name)}</b>{note}</div>'
    return f'{head}<div style="{PROSE}">{body}</div>{tails}'


def _without_last_break(spans: str) -> str:
    """A line end at the end needs no line of its own."""
    return spans.removesuffix(f"<br>{END}") + END if spans.endswith(f"<br>{END}") else spans


def _drawn(character: str) -> str:
    """A character as HTML; white space as a faint sign, a line end followed by a real one."""
    if character not in VISIBLE:
        return escape(_visible(character))
    return f'<span style="opacity:.5">{VISIBLE[character]}</span>' + "<br>" * (character == "\n")


def _span(piece: Piece, i: int, fades: bool) -> str:
    shown = "".join(map(_drawn, piece.text))
    faded = fades and piece.kind == "read"
    colour = COLOURS[i % len(COLOURS)]
    style = f"background:rgba({colour},{'.08' if faded else '.28'});border-radius:3px;padding:1px 0;"
    if faded:
        style += "opacity:.62;"
    if piece.kind == "hidden":
        style += "outline:1.5px solid rgba(220,38,38,.85);outline-offset:-1px;font-weight:600;"
    told = f"token {piece.id}: {_visible(piece.text)}" + (f"; {piece.told}" if piece.told else "")
    told += "" if not fades else "; learned" if piece.kind == "learned" else "; only read"
    return f'<span title="{escape(told)}" style="{style}">{shown or "∅"}{END}'
