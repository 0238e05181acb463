"""Which columns of a table hold what is learned, and a row of it as a document; knows nothing of file formats."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from utils.config.schema import DataConfig, SourceConfig
from utils.data.documents import BadRow, Document
from utils.data.reading.text_stream import half_character

Kind = Literal["text", "messages", "number", "other"]

TEXTS = ("text", "content", "body", "sentence", "document", "story")
CHATS = ("messages", "conversations", "conversation")
PAIRS = (  # (the prompt, what may follow it)
    ("prompt", ("completion", "response", "answer", "output", "target")),
    ("instruction", ("output", "response", "completion", "answer")),
    ("question", ("answer", "response", "output")),
    ("source", ("target",)),
    ("input", ("output", "target")),
)
ASKS = ("instruction", "question")  # after these a new line begins; a prompt is its writer's own affair
CONTEXTS = ("input", "context")  # what goes with an instruction
LABELS = ("label", "labels")
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns that are read; empty = none. `context` is put after the text, on a line of its own."""

    text: str = ""
    target: str = ""
    label: str = ""
    messages: str = ""
    context: str = ""

    @property
    def names(self) -> list[str]:
        """All of them, each once: nothing else need be read."""
        named = (self.text, self.context, self.target, self.label, self.messages)
        return list(dict.fromkeys(filter(None, named)))


def choose_columns(
    kinds: Mapping[str, str] | Iterable[tuple[str, str]], part: SourceConfig, config: DataConfig
) -> Columns:
    """The columns that data.text_field, target_field and label_field name, or that are told by their names and kinds.

    Args:
        kinds: each column's name and `Kind`, in the table's order.
        part: whose settings count.
        config: says whether a class is learned (task=classification).

    Raises ValueError listing the columns where one is not there, or where none can be told from the others.
    """
    kinds = dict(kinds)
    place = part.name or part.path
    for setting in ("text_field", "target_field", "label_field"):
        given = getattr(part, setting)
        if given and given not in kinds:
            near = difflib.get_close_matches(given, kinds, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"data.{setting}={given}: {place} has no such column, but {listed(kinds)}{hint}")
    label = part.label_field or (_label(kinds, place) if config.task == "classification" else "")
    if part.text_field:
        if kinds[part.text_field] == "messages":
            return Columns(messages=_alone(part), label=label)
        return Columns(part.text_field, part.target_field, label)
    free = {name: kind for name, kind in kinds.items() if name not in (part.target_field, label, *LABELS)}
    found = _told_by_name(free, part.target_field)
    if found is None:
        raise ValueError(
            f"which column of {place} holds the text? There are {listed(kinds)}: say data.text_field=NAME "
            "(and data.target_field=NAME, where another holds the answer)"
        )
    return Columns(found.text, found.target, label, found.messages, found.context)


def listed(kinds: Mapping[str, str]) -> str:
    """The columns in words."""
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "none"


def _alone(part: SourceConfig) -> str:
    if part.target_field:
        raise ValueError(
            f"data.text_field={part.text_field} holds chats, whose answers are in them: leave data.target_field out"
        )
    return part.text_field


def _label(kinds: Mapping[str, str], place: str) -> str:
    for name in LABELS:
        if name in kinds:
            return name
    raise ValueError(f"data.task=classification needs a class for each text: which column of {place} holds it? "
                     f"There are {listed(kinds)}: say data.label_field=NAME")  # fmt: skip


def _told_by_name(kinds: Mapping[str, str], target: str) -> Columns | None:
    """A chat, a pair, a text: the first that the columns' names and kinds speak for; None if nothing does."""
    lower = {name.lower(): name for name in reversed(list(kinds))}  # the first of two counts
    texts = [name for name, kind in kinds.items() if kind == "text"]
    chats = [name for name, kind in kinds.items() if kind == "messages"]

    def text(name: str) -> str:
        own = lower.get(name, "")
        return own if kinds.get(own) == "text" else ""

    if not target:
        for name in CHATS:
            if lower.get(name) in chats:
                return Columns(messages=lower[name])
        for prompt, answers in PAIRS:
            answer = next(filter(None, map(text, answers)), "")
            if text(prompt) and answer:
                context = next(filter(None, map(text, CONTEXTS)), "") if prompt == "instruction" else ""
                return Columns(text(prompt), answer, context=context)
    prompts = [prompt for prompt, _ in PAIRS]
    chosen = next(filter(None, map(text, (*prompts, *TEXTS) if target else (*TEXTS, *prompts))), "")
    if not chosen and len(texts) == 1:
        chosen = texts[0]
    if chosen:
        return Columns(chosen, target)
    return Columns(messages=chats[0]) if len(chats) == 1 and not target else None


def kind_of(values: Iterable[Any]) -> Kind:
    """What a column holds, told by some of its values; nulls say nothing."""
    kinds: set[Kind] = {_kind(value) for value in values if value is not None}
    return kinds.pop() if len(kinds) == 1 else "other"


def _kind(value: Any) -> Kind:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool | int | float):
        return "number"
    if isinstance(value, list) and all(isinstance(one, dict) and _speaks(one) for one in value):
        return "messages"
    return "other"


def _speaks(message: Mapping[str, Any]) -> bool:
    return {"role", "content"} <= message.keys() or {"from", "value"} <= message.keys()


# ---- A row ----


def to_document(row: Mapping[str, Any], columns: Columns, where: str, side: str = "", part: int = 0) -> Document:
    """A row as a document. Raises BadRow naming `where` and the column that is missing or holds something else."""
    label = None if not columns.label else as_label(row, columns.label, where)
    if columns.messages:
        messages = as_messages(_value(row, columns.messages, where), columns.messages, where)
        return Document("", where, None, label, messages, side, part)
    text = as_text(row, columns.text, where)
    if columns.context and row.get(columns.context):
        text = f"{text}\n{as_text(row, columns.context, where)}"
    if columns.target and columns.text in ASKS and not text.endswith((" ", "\n")):
        text += "\n"  # or "Add 2 and 2" and "4" would be learned as 24
    target = as_text(row, columns.target, where) if columns.target else None
    return Document(text, where, target, label, None, side, part)


def as_text(row: Mapping[str, Any], column: str, where: str) -> str:
    """The text in a column; BadRow if it is none."""
    value = _value(row, column, where)
    if not isinstance(value, str):
        raise BadRow(where, f"column {column} holds {said(value)}, not text: {_todo('text_field')}")
    return _valid(value, f"column {column}", where)


def as_label(row: Mapping[str, Any], column: str, where: str) -> str:
    """The class in a column, as text: 3 and 3.0 are "3"."""
    value = _value(row, column, where)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float) or value == "" or value != value:  # NaN: nobody said which
        problem = f"column {column} holds {said(value)}, not a class (text or a number)"
        raise BadRow(where, f"{problem}: {_todo('label_field')}")
    return _valid(str(value), f"column {column}", where)


def as_messages(value: Any, column: str, where: str) -> tuple[dict[str, str], ...]:
    """Chat messages as `{"role", "content"}`; `{"from", "value"}` is understood too. BadRow for anything else."""
    if not isinstance(value, list | tuple) or not value:
        raise BadRow(where, f"column {column} holds {said(value)}, not a list of messages: {_todo('text_field')}")
    return tuple(_message(one, f"column {column}, message {i}", where) for i, one in enumerate(value, 1))


def _message(one: Any, which: str, where: str) -> dict[str, str]:
    for role, content in (("role", "content"), ("from", "value")):
        if isinstance(one, Mapping) and role in one and content in one:
            for key in (role, content):
                if not isinstance(one[key], str):
                    raise BadRow(where, f"{which}: {key} is {said(one[key])}, not text: {_todo()}")
            who = str(ROLES.get(one[role].lower(), one[role]))
            return {"role": _valid(who, which, where), "content": _valid(one[content], which, where)}
    what = f"one with {', '.join(map(str, one))}" if isinstance(one, Mapping) and one else said(one)
    raise BadRow(where, f'{which} is {what}, not {{"role": ..., "content": ...}}: {_todo()}')


def _value(row: Mapping[str, Any], column: str, where: str) -> Any:
    value = row.get(column)
    if value is None:
        there = "is null" if column in row else f"is missing (there: {', '.join(map(str, row)) or 'nothing'})"
        raise BadRow(where, f"column {column} {there}: {_todo()}")
    return value


def _valid(text: str, which: str, where: str) -> str:
    if not text.isascii() and (at := half_character(text)) >= 0:
        raise BadRow(where, f"{which} holds half a character (U+{ord(text[at]):04X}), which is no text: {_todo()}")
    return text


def _todo(setting: str = "") -> str:
    other = f"name another with data.{setting}, " if setting else ""
    return f"{other}mend the row, or leave such rows out with data.on_bad_row=skip"


def said(value: Any) -> str:
    """A value in words, with its type as JSON calls it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:20]!r}" if value else "an empty text"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"
