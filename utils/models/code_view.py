"""Somebody's Python text as a syntax tree its lines and its classes, read within limits; runs none of it."""

import ast
import builtins
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

MAX_BYTES = 5_000_000
MAX_WORDS = 200_000  # a tree takes about a kilobyte of memory per word; the longest published models have 34,000
LINE_WIDTH = 110
_NEW_LINE = re.compile(r"\r\n|\r|\n")  # as Python counts; splitlines() would also break at form feeds
_WORD = re.compile(r"\w+|[^\w\s]")


class UnreadableCode(ValueError):
    """Text that cannot be read as Python; `line` is counted from 1, 0 where none is to blame."""

    def __init__(self, message: str, line: int = 0, text: str = "") -> None:
        super().__init__(message)
        self.line, self.text = line, text


@dataclass(frozen=True)
class Code:
    """A parsed file."""

    tree: ast.Module
    lines: list[str]
    nodes: list[ast.AST]
    """Every node of the tree, outer ones first."""

    def line(self, number: int, column: int = 0) -> str:
        """One line as a person may safely see it: no control signs; of a very long one, the part at `column`."""
        text = self.lines[number - 1] if 0 < number <= len(self.lines) else ""
        if len(text) > LINE_WIDTH and column > LINE_WIDTH - 40:  # columns count bytes of UTF-8
            text = "... " + text.encode(errors="replace")[column - 20 :].decode(errors="replace")
        return printable(text.strip())


def printable(text: str, width: int = LINE_WIDTH) -> str:
    """`text` without signs that move a terminal's cursor or turn the reading direction, and not longer than `width`."""
    cut = text[: width + 1].replace("\t", " ")
    clean = "".join(sign if sign.isprintable() else "?" for sign in cut)
    return clean if len(clean) <= width else clean[: width - 4] + " ..."


def read_code(source: str) -> Code:
    """Parse `source` without running it.

    Raises UnreadableCode where Python would not read it either, and for text over the limits: 5 MB, 200,000
    words and signs, expressions nested deeper than the parser goes.
    """
    size = len(source) if len(source) > MAX_BYTES else len(source.encode(errors="replace"))
    if size > MAX_BYTES:
        raise UnreadableCode(f"the code is {size / 1e6:.1f} MB; at most {MAX_BYTES / 1e6:.0f} MB are read")
    source = source.removeprefix("\ufeff")
    lines = _NEW_LINE.split(source)
    if "\0" in source:
        raise UnreadableCode("the code holds a NUL byte, which Python refuses", _line_of(source, "\0"))
    if sum(1 for _ in _WORD.finditer(source)) > MAX_WORDS:
        raise UnreadableCode(f"the code has more than {MAX_WORDS:,} words and signs; this is data, not a model")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a stranger's string is not our user's warning
            tree = ast.parse(source)
    except SyntaxError as error:
        number = min(error.lineno or 0, len(lines))
        text = printable(lines[number - 1].strip()) if number else ""
        raise UnreadableCode(f"Python cannot read line {number}: {printable(error.msg, 200)}", number, text) from None
    except (RecursionError, MemoryError):
        raise UnreadableCode("the code is nested too deeply for Python's parser") from None
    except UnicodeEncodeError as error:
        number = _line_of(source, source[error.start])
        raise UnreadableCode("the code holds a lone surrogate, which Python refuses", number) from None
    except ValueError as error:
        raise UnreadableCode(f"Python cannot read the code: {printable(str(error), 200)}") from None
    return Code(tree, lines, list(ast.walk(tree)))


def _line_of(source: str, sign: str) -> int:
    return len(_NEW_LINE.findall(source, 0, source.index(sign))) + 1


def words(text: str) -> frozenset[str]:
    """A set of words, written as a sentence."""
    return frozenset(text.split())


def dotted(node: ast.AST) -> str:
    """`a.b.c` for a chain of attributes on a name, else an empty string."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def imported_names(nodes: list[ast.AST]) -> Iterator[tuple[str, str]]:
    """Every name an import binds, wherever in the file, with what it stands for: ("F", "torch.nn.functional")."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, "." * node.level + f"{node.module or ''}.{alias.name}".lstrip(".")


@dataclass(frozen=True, eq=False)
class ClassView:
    """One class of the file, and what is known of those it derives from."""

    node: ast.ClassDef
    methods: dict[str, ast.FunctionDef | ast.AsyncFunctionDef]
    parents: tuple["ClassView", ...]
    """Those in the same file."""
    is_module: bool
    """Derives from a torch.nn.Module, as far as the file tells."""
    unknown: bool
    """Something about it is not in the file (a base, a metaclass, a decorator), so that nothing can be said to lack."""

    foreign: tuple[str, ...]
    """The bases from outside the file that may be models of their own."""

    @property
    def name(self) -> str:
        return self.node.name

    def family(self) -> list["ClassView"]:
        """Itself, then all it derives from in this file, at most 50."""
        found = [self]
        for view in found:
            found += [parent for parent in view.parents if parent not in found][: 50 - len(found)]
        return found

    def method(self, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """Its own or inherited."""
        return next((view.methods[name] for view in self.family() if name in view.methods), None)


NO_MODELS = {"torch", "nn", "enum", "typing", "collections", "abc", *dir(builtins)}
PLAIN_BASES = {"object", "abc.ABC", "ABC", "typing.Generic", "typing.Protocol"}


def classes(code: Code, imported: dict[str, str]) -> dict[str, ClassView]:
    """Every class at the top of the file or under an `if` or `try` there, in the order of the text; at most 2,000."""
    stars = "*" in imported
    views: dict[str, ClassView] = {}
    for node in _definitions(code.tree):
        if len(views) >= 2000:
            break
        names = [dotted(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases]
        full = [full_name(name, imported) for name in names]
        parents = tuple(views[name] for name in names if name in views)
        foreign = [f for name, f in zip(names, full, strict=True) if name not in views and f not in PLAIN_BASES]
        module = [f for f in foreign if f.startswith(("torch.nn.", "nn.")) or f == "Module"]
        outside = any(f not in ("torch.nn.Module", "nn.Module") for f in foreign)
        view = ClassView(
            node,
            {s.name: s for s in node.body if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef)},
            parents,
            bool(module) or (stars and "Module" in names) or any(parent.is_module for parent in parents),
            outside
            or bool(node.keywords or node.decorator_list)
            or any(parent.unknown for parent in parents)
            or node.name in views,
            tuple(f for f in foreign if f.split(".")[0] not in NO_MODELS),
        )
        views[node.name] = view
    return views


def _definitions(tree: ast.Module) -> Iterator[ast.ClassDef]:
    waiting: list[ast.stmt] = list(reversed(tree.body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ClassDef):
            yield node
        elif isinstance(node, ast.If | ast.Try):
            inner = [*node.body, *node.orelse, *getattr(node, "finalbody", ())]
            inner += [s for handler in getattr(node, "handlers", ()) for s in handler.body]
            waiting += reversed(inner)


def full_name(name: str, imported: dict[str, str]) -> str:
    """`nn.Linear` -> `torch.nn.Linear`, by the file's imports."""
    first, dot, rest = name.partition(".")
    return imported.get(first, first) + dot + rest
