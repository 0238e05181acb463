"""Chat messages as text, by a jinja template in a sandbox: what is template, what was said, what is to be learned.

Knows a tokenizer only by its template and special tokens. A message can never write a special token: contents are
put in after the template has been rendered with placeholders, so `<|im_end|>` in a message stays ordinary text.
"""

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

    from utils.data.tokenizing.tokenizer import Tokenizer

Message = Mapping[str, str]

CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # ChatML
NAMELESS = dict.fromkeys([f"{role}_token" for role in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")], "")
MOST = 1_000_000  # characters a template may add to what was said
TODAY = datetime.datetime(2025, 1, 1)  # what a template that asks for the date is told: the same text every day
SPACE = "\u2003"  # around each placeholder: gone where a template trims
CONTENT = re.compile("(\u2003?)\ue000([0-9]+)\ue001(\u2003?)")  # a placeholder, in private-use characters
MARKS = "\ue002", "\ue003"  # the ends of what a template calls {% generation %}


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a chat's text."""

    text: str
    special: bool
    """Whether it is one special token that the template wrote; else it is ordinary text, whatever it looks like."""
    answer: bool
    """Whether it is learned: what the assistant said, and what ends its turn."""


def segments(
    messages: Sequence[Message], tokenizer: "Tokenizer", template: str = "", add_generation_prompt: bool = False
) -> list[Segment]:
    """The parts of a chat; joined they are what `render` writes.

    `template` is the tokenizer's own where it is "", and ChatML where it has none. Learned is what the template calls
    {% generation %}; without such tags, the assistant's contents with the end of each turn: the template's text up to
    the first special token, else to the end of the line.

    Raises ValueError for a message without role or content, and for a template that cannot be read, that refuses these
    messages, or that leaves out or changes what one of them says.
    """
    template = template or tokenizer.chat_template or DEFAULT_TEMPLATE
    names = roles_of(tokenizer)
    said = _checked(messages)
    hidden = [
        {**message, "content": f"{SPACE}\ue000{i}\ue001{SPACE}" if message["content"] else ""}
        for i, message in enumerate(said)
    ]
    text = _render(hidden, template, names, add_generation_prompt, marks=True)
    _check_all_there(text, said)
    parts = list(_cut(text, said, tokenizer.special_tokens))
    _check_unchanged("".join(part.text for part in parts), said, _render(said, template, names, add_generation_prompt))
    return parts


def render(
    messages: Sequence[Message],
    template: str = DEFAULT_TEMPLATE,
    names: Mapping[str, str] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """The chat as one text. `names` are bos_token, eos_token and the like; `add_generation_prompt` begins an answer.

    Raises ValueError as `segments` does.
    """
    return _render(_checked(messages), template, {**NAMELESS, **(names or {})}, add_generation_prompt)


def roles_of(tokenizer: "Tokenizer") -> dict[str, str]:
    """What a template may call a tokenizer's special tokens: bos_token, eos_token and so on."""
    return {name: tokenizer.special(name.removesuffix("_token")) for name in NAMELESS}


def encode_chat(
    messages: Sequence[Message], tokenizer: "Tokenizer", template: str = "", add_generation_prompt: bool = False
) -> tuple[list[int], list[int]]:
    """Ids of a chat, and for each 1 where it is learned, else 0. Raises ValueError as `segments` does.

    Template and contents are cut together, as whoever uses the model later cuts them: only the template's special
    tokens are borders. A token that reaches into an answer is learned.
    """
    ids: list[int] = []
    learned: list[int] = []
    text: list[str] = []
    flags: list[bool] = []  # of each character waiting in `text`

    def write() -> None:
        for token, start, end in tokenizer.encode_spans("".join(text)):
            ids.append(token)
            learned.append(int(any(flags[start : max(end, start + 1)])))
        text.clear()
        flags.clear()

    for part in segments(messages, tokenizer, template, add_generation_prompt):
        if part.special:
            write()
            ids.append(tokenizer.special_tokens[part.text])
            learned.append(int(part.answer))
        else:
            text.append(part.text)
            flags += [part.answer] * len(part.text)
    write()
    return ids, learned


def encode_question(question: str, tokenizer: "Tokenizer") -> tuple[list[int], frozenset[int]]:
    """Ids of a chat in which a user has said `question` and the answer is about to begin, and the ids that end it.

    Raises ValueError for a question that says nothing, for a tokenizer without a template, and as `segments` does.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "this model's tokenizer has no chat template, for it was not made for chats: leave --chat (chat=True) out"
        )
    if not question.strip():
        raise ValueError('a chat begins with what you say: --chat --prompt "What is a mark?"')
    asked = {"role": "user", "content": question}
    ids, _ = encode_chat([asked], tokenizer, add_generation_prompt=True)
    parts = segments([asked, {"role": "assistant", "content": "A sign."}], tokenizer)
    ends = [tokenizer.special_tokens[part.text] for part in parts if part.special and part.answer]
    return ids, frozenset(ends[-1:])


# --- cutting -----------------------------------------------------------------------------------------------------


def _cut(text: str, said: Sequence[Message], special: Mapping[str, int]) -> Iterator[Segment]:
    marked, inside, ends_turn = MARKS[0] in text, False, False
    at = 0
    for found in [*CONTENT.finditer(text), None]:
        between = text[at : found.start() if found else len(text)]
        for piece in re.split(f"([{''.join(MARKS)}])", between):
            if piece in MARKS:
                inside = piece == MARKS[0]
            elif marked:
                yield from _template(piece, inside, special)
            else:
                end = _turn_end(piece, special) if ends_turn else 0
                yield from _template(piece[:end], True, special)
                yield from _template(piece[end:], False, special)
        if found is None:
            return
        message = said[int(found[2])]
        content = message["content"]
        content = content if found[1] else content.lstrip()
        content = content if found[3] else content.rstrip()
        ends_turn = message["role"] == "assistant"
        if content:
            yield Segment(content, False, inside if marked else ends_turn)
        at = found.end()


def _template(text: str, answer: bool, special: Mapping[str, int]) -> Iterator[Segment]:
    """The template's text, cut around the special tokens in it, the longest first."""
    tokens = sorted(filter(None, special), key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, tokens))})", text) if tokens else [text]
    return (Segment(part, part in special, answer) for part in parts if part)


def _turn_end(text: str, special: Mapping[str, int]) -> int:
    """How much of the template's text after an answer ends the turn."""
    ends = [text.index(token) + len(token) for token in special if token and token in text]
    line = text.find("\n") + 1
    return min(ends) if ends else line or len(text)


# --- checking ----------------------------------------------------------------------------------------------------


def _checked(messages: Sequence[Message]) -> list[dict[str, str]]:
    for i, message in enumerate(messages, 1):
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise ValueError(f"message {i} has no {key}: each is {{'role': 'user', 'content': 'the text'}}")
        if not re.fullmatch(r"[\w .-]+", message["role"]):
            raise ValueError(
                f"message {i} has the role {message['role']!r}: a role is a word such as user or assistant"
            )
    if not messages:
        raise ValueError("a chat without messages says nothing")
    return [dict(message) for message in messages]


def _check_all_there(text: str, said: list[dict[str, str]]) -> None:
    present = {int(found[2]) for found in CONTENT.finditer(text)}
    for i, message in enumerate(said):
        if message["content"] and i not in present:
            raise ValueError(
                f"the chat template leaves out message {i + 1} ({message['role']}): it would never be learned. Choose "
                "another data.chat_template, or leave such messages out with data.hook"
            )


def _check_unchanged(joined: str, said: list[dict[str, str]], whole: str) -> None:
    if joined == whole:
        return
    changed = next((i for i, m in enumerate(said) if m["content"].strip() not in whole), None)
    which = "a message" if changed is None else f"message {changed + 1} ({said[changed]['role']})"
    raise ValueError(
        f"the chat template changes what {which} says, beyond spaces at its ends, so it is not known which tokens are "
        "the answer. Choose another data.chat_template"
    )


# --- jinja -------------------------------------------------------------------------------------------------------


def _render(
    messages: Sequence[Message],
    template: str,
    names: Mapping[str, str],
    add_generation_prompt: bool = False,
    marks: bool = False,
) -> str:
    import jinja2

    compiled = _compiled(template, marks)
    limit = MOST + 4 * sum(len(message["content"]) for message in messages)
    written, size = [], 0
    try:
        for part in compiled.generate(
            messages=[dict(m) for m in messages], tools=None, documents=None,
            add_generation_prompt=add_generation_prompt, **names,
        ):  # fmt: skip
            written.append(part)
            size += len(part)
            if size > limit:
                raise ValueError(f"the chat template writes more than {limit:,} characters for one chat")
    except _Refused as error:
        raise ValueError(f"the chat template refuses these messages: {error}") from None
    except ValueError:
        raise
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"the chat template cannot write these messages: {error}") from None
    return "".join(written)


class _Refused(Exception):
    """What raise_exception in a template raises."""


@lru_cache(maxsize=16)
def _compiled(template: str, marks: bool) -> "jinja2.Template":
    """The template, ready; set up as transformers does, whose templates these are. Raises ValueError with the line."""
    import jinja2
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: what the assistant writes."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller: Any) -> str:
            return f"{MARKS[0]}{caller()}{MARKS[1]}" if marks else str(caller())

    class Sandbox(ImmutableSandboxedEnvironment):
        """No attribute that leads out, nothing changed, and no operator that makes a huge text at once."""

        intercepted_binops = frozenset(("*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            texts = [len(x) for x in (left, right) if isinstance(x, str | list | tuple)]
            numbers = [abs(x) for x in (left, right) if isinstance(x, int | float)]
            if operator == "%" and isinstance(left, str) and re.search(r"%[^%a-zA-Z]*(\d{5}|\*)", left):
                raise SecurityError("it pads a text too far")
            if (operator == "*" and texts and texts[0] * max(numbers, default=0) > MOST) or (
                operator == "**" and max(numbers, default=0) > 1000
            ):
                raise SecurityError(f"it makes something huge with {operator}")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: str) -> None:
        raise _Refused(message)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals.update(raise_exception=raise_exception, strftime_now=TODAY.strftime)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        line = (template.splitlines() or [""])[error.lineno - 1].strip()[:80]
        raise ValueError(f"the chat template is wrong in line {error.lineno} ({line}): {error.message}") from None
