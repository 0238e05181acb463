"""Names that Python code uses and nothing binds, or binds only later; runs nothing, and is silent when in doubt."""

import ast
import builtins
import difflib
import sys
from collections import defaultdict
from dataclasses import dataclass, field, replace

MAX_FOUND = 50
# Beside the builtins, what a module, a class body or a method has without binding it.
GIVEN = {*dir(builtins), "__file__", "__path__", "__annotations__", "__builtins__", "__cached__", "__class__",
         "__module__", "__qualname__", "__debug__", "WindowsError", "reveal_type"}  # fmt: skip
# Calls that bind names no reading can see.
OPAQUE = {"exec", "globals", "locals", "vars"}
LAZY_ANNOTATIONS = sys.version_info >= (3, 14)


@dataclass(frozen=True)
class UnknownName:
    """A name that is not there when it is needed."""

    name: str
    line: int
    place: str
    """The function or class that uses it; empty at the top of the file."""
    bound_later: int = 0
    """The later line that binds it; 0 where nothing does."""
    similar: str = ""
    """A visible name that is nearly the same."""


@dataclass
class _Event:
    order: int  # in which order Python gets there, which is not the order of the text
    line: int
    loops: frozenset[int]


@dataclass
class _Scope:
    kind: str  # module, function, class
    place: str
    parent: "_Scope | None"
    bound: dict[str, list[_Event]] = field(default_factory=lambda: defaultdict(list))
    used: list[tuple[str, _Event]] = field(default_factory=list)
    elsewhere: dict[str, str] = field(default_factory=dict)  # name -> global or nonlocal
    loops: frozenset[int] = frozenset()
    guarded: int = 0  # inside a try that expects a NameError, or after a return


def unknown_names(tree: ast.Module) -> list[UnknownName]:
    """Every name that no visible place binds, or that its own function binds only on later lines.

    A name bound on one branch only counts as bound, and a loop around use and binding makes any order good.
    Nothing is reported for a file with a star import or a call of exec, globals, locals or vars, nor for one
    nested too deeply to follow. At most 50 are returned, in the order of their lines.
    """
    visitor = _Names()
    try:
        visitor.block(tree.body)
    except RecursionError:
        return []
    if visitor.opaque:
        return []
    found = [(name, scope) for scope in visitor.scopes for name in _unknown(scope, visitor)]
    found.sort(key=lambda pair: (pair[0].line, pair[0].name))
    return [replace(item, similar="" if item.bound_later else _similar(scope, item.name))
            for item, scope in found[:MAX_FOUND]]  # fmt: skip


def _unknown(scope: _Scope, visitor: "_Names") -> list[UnknownName]:
    found: dict[str, UnknownName] = {}
    loops: dict[str, frozenset[int]] = {}  # name -> the loops that bind it
    for name, use in scope.used:
        if len(found) >= MAX_FOUND:
            break
        if name in found or (name.startswith("__") and not name.endswith("__")):  # a private name is renamed
            continue
        events = scope.bound.get(name, ()) if name not in scope.elsewhere else ()
        if events:
            if events[0].order < use.order:
                continue
            if name not in loops:
                loops[name] = frozenset().union(*(event.loops for event in events))
            if use.loops & loops[name]:
                continue
            outer = scope.kind == "class" and _visible(scope.parent, name, visitor)
            if not outer and not (scope.kind == "module" and _given(name, visitor)):
                found[name] = UnknownName(name, use.line, scope.place, bound_later=events[0].line)
        elif not _visible(scope.parent, name, visitor):
            found[name] = UnknownName(name, use.line, scope.place)
    return list(found.values())


def _given(name: str, visitor: "_Names") -> bool:
    return name in GIVEN or name in visitor.declared_global


def _visible(scope: _Scope | None, name: str, visitor: "_Names") -> bool:
    """Bound in an enclosing function, at the top of the file, or by Python itself."""
    while scope is not None:
        if scope.kind != "class" and name in scope.bound:
            return True
        scope = scope.parent
    return _given(name, visitor) or name in visitor.top.bound


def _similar(scope: _Scope, name: str) -> str:
    names: list[str] = []
    seen: _Scope | None = scope
    while seen is not None and len(names) < 500:
        names += list(seen.bound)[: 500 - len(names)]
        seen = seen.parent
    return next(iter(difflib.get_close_matches(name[:100], names, 1, 0.75)), "")


class _Names(ast.NodeVisitor):
    """Walks in the order in which Python evaluates; functions are walked where they stand, in their own scope."""

    def __init__(self) -> None:
        self.top = _Scope("module", "", None)
        self.scope = self.top
        self.scopes = [self.top]
        self.comprehensions: list[set[str]] = []  # what the comprehensions around this place bind
        self.declared_global: set[str] = set()
        self.opaque = False
        self.eager = not LAZY_ANNOTATIONS
        self.order = 0

    # -- events

    def event(self, node: ast.AST) -> _Event:
        self.order += 1
        return _Event(self.order, getattr(node, "lineno", 0), self.scope.loops)

    def bind(self, name: str, node: ast.AST) -> None:
        self.scope.bound[name].append(self.event(node))

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self.bind(node.id, node)
        elif not self.scope.guarded and not any(node.id in names for names in self.comprehensions):
            self.scope.used.append((node.id, self.event(node)))

    def visit_Global(self, node: ast.Global) -> None:
        self.scope.elsewhere.update(dict.fromkeys(node.names, "global"))
        self.declared_global.update(node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.scope.elsewhere.update(dict.fromkeys(node.names, "nonlocal"))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.bind(alias.asname or alias.name.split(".")[0], node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self.opaque |= alias.name == "*"
            self.bind(alias.asname or alias.name, node)
        if node.module == "__future__" and any(alias.name == "annotations" for alias in node.names):
            self.eager = False

    def visit_Call(self, node: ast.Call) -> None:
        self.opaque |= isinstance(node.func, ast.Name) and node.func.id in OPAQUE
        self.generic_visit(node)

    # -- statements whose order of evaluation differs from that of their fields

    def block(self, body: list[ast.stmt]) -> None:
        dead = 0
        for statement in body:
            self.visit(statement)
            if not dead and isinstance(statement, ast.Return | ast.Raise | ast.Continue | ast.Break):
                dead = 1
                self.scope.guarded += 1  # what comes after it is never reached
        self.scope.guarded -= dead

    def visit_all(self, *nodes: ast.AST | None) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit_all(node.value, *node.targets)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.visit(ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target))
        self.visit_all(node.value, node.target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if self.eager and self.scope.kind != "function":
            self.visit(node.annotation)
        self.visit_all(node.value)
        if node.value is not None or self.scope.kind == "class" or not isinstance(node.target, ast.Name):
            self.visit(node.target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit_all(node.value, node.target)

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self.block(node.body)
        self.block(node.orelse)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            self.visit_all(item.context_expr, item.optional_vars)
        self.block(node.body)

    visit_AsyncWith = visit_With

    def loop(self, node: ast.For | ast.AsyncFor | ast.While, head: tuple[ast.AST, ...]) -> None:
        outside = self.scope.loops
        self.scope.loops = outside | {id(node)}
        self.visit_all(*head)
        self.block(node.body)
        self.scope.loops = outside
        self.block(node.orelse)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self.loop(node, (node.target,))

    visit_AsyncFor = visit_For

    def visit_While(self, node: ast.While) -> None:
        self.loop(node, (node.test,))

    def visit_Try(self, node: ast.Try) -> None:
        expected = any(_catches_names(handler) for handler in node.handlers)
        self.scope.guarded += expected
        self.block(node.body)
        self.scope.guarded -= expected
        for handler in node.handlers:
            self.visit_all(handler.type)
            if handler.name:
                self.bind(handler.name, handler)
            self.block(handler.body)
        self.block(node.orelse)
        self.block(node.finalbody)

    visit_TryStar = visit_Try

    def visit_match_case(self, node: ast.match_case) -> None:
        self.visit_all(node.pattern, node.guard)
        self.block(node.body)

    def _pattern(self, node: ast.MatchAs | ast.MatchStar | ast.MatchMapping) -> None:
        name = node.rest if isinstance(node, ast.MatchMapping) else node.name
        if name:
            self.bind(name, node)
        self.generic_visit(node)

    visit_MatchAs = visit_MatchStar = visit_MatchMapping = _pattern

    # -- scopes

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        self.visit(node.generators[0].iter)
        names = {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
        self.comprehensions.append(names)
        for index, generator in enumerate(node.generators):
            self.visit_all(generator.iter if index else None, *generator.ifs)
        self.visit_all(*([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]))
        self.comprehensions.pop()

    visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_ListComp

    def enter(self, kind: str, name: str) -> _Scope:
        outer = self.scope
        place = f"{outer.place}.{name}" if outer.place else name
        self.scope = _Scope(kind, place, outer, guarded=int(outer.guarded > 0))
        self.scopes.append(self.scope)
        return outer

    def parameters(self, node: ast.AST) -> None:  # [T] of Python 3.12
        for parameter in getattr(node, "type_params", ()):
            self.bind(parameter.name, node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
        self.visit_all(*getattr(node, "decorator_list", ()), *arguments.defaults, *arguments.kw_defaults)
        self.parameters(node)
        if self.eager and not isinstance(node, ast.Lambda):
            self.visit_all(*(a.annotation for a in every), node.returns)
        name = "lambda" if isinstance(node, ast.Lambda) else node.name
        if name != "lambda":
            self.bind(name, node)
        outer = self.enter("function", name)
        for argument in every:
            self.bind(argument.arg, argument)
        if isinstance(node, ast.Lambda):
            self.visit(node.body)
        else:
            comprehensions, self.comprehensions = self.comprehensions, []
            self.block(node.body)
            self.comprehensions = comprehensions
        self.scope = outer

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_all(*node.decorator_list)
        self.parameters(node)
        self.visit_all(*node.bases, *node.keywords)
        outer = self.enter("class", node.name)
        self.block(node.body)
        self.scope = outer
        self.bind(node.name, node)

    def visit_TypeAlias(self, node: ast.AST) -> None:  # evaluated only when somebody asks
        self.visit(node.name)  # type: ignore[attr-defined]


def _catches_names(handler: ast.ExceptHandler) -> bool:
    names = {"NameError", "UnboundLocalError", "Exception", "BaseException"}
    return handler.type is None or any(isinstance(n, ast.Name) and n.id in names for n in ast.walk(handler.type))
