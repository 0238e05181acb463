"""One torch module as its text shows it: what it sets, uses and forgets; runs nothing, imports no torch."""

import ast
from collections.abc import Iterator, Sequence

from utils.models.code_view import ClassView, dotted, full_name, words

Function = ast.FunctionDef | ast.AsyncFunctionDef
# What torch.nn.Module gives every module; a test compares it with torch itself.
GIVEN = words(
    "T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double "
    "dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu "
    "load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters "
    "register_backward_hook register_buffer register_forward_hook register_forward_pre_hook "
    "register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook "
    "register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook "
    "register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to "
    "to_empty train training type xpu zero_grad"
)
REGISTERS = {"register_buffer", "register_parameter", "register_module", "add_module", "set_submodule"}
WALKS = {"children", "named_children", "modules", "named_modules", "_modules", "get_submodule"}
# Methods and calls after which attributes may exist that no text names.
OPAQUE_METHODS = {"__getattr__", "__getattribute__", "__setattr__", "__new__", "__slots__", "__init_subclass__"}
HARMLESS_CALLS = {"super", "isinstance", "hasattr", "getattr", "setattr", "type", "id", "len", "repr", "str", "print"}


class FileFacts:
    """What holds for all classes of a file: found once."""

    def __init__(self, nodes: Sequence[ast.AST], views: Sequence[ClassView]) -> None:
        self.set_from_outside: set[str] = set()  # x.name = ... on anything, also from another class
        self.strings: set[str] = set()
        self.reads_by_name = self.sets_by_name = False
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and dotted(node.value) != "self":
                self.set_from_outside.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 200:
                self.strings.update(node.value.split("."))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
                computed = not isinstance(node.args[1], ast.Constant)
                self.reads_by_name |= node.func.id == "getattr" and computed
                self.sets_by_name |= node.func.id == "setattr" and computed
        self.loaded = set(_loaded(nodes, views))
        self.heirs: dict[str, list[ClassView]] = {}
        for view in views:
            for parent in view.family()[1:]:
                self.heirs.setdefault(parent.name, []).append(view)


class ModuleView:
    """The attributes of one class, with its bases and heirs in the same file."""

    def __init__(self, view: ClassView, modules: dict[str, ClassView], imported: dict[str, str], facts: FileFacts):
        self.view, self.modules, self.imported, self.facts = view, modules, imported, facts
        self.family = [*view.family(), *facts.heirs.get(view.name, [])[:50]]
        self.own: set[str] = set()
        self.opaque = facts.sets_by_name
        for member in self.family:
            self.own |= class_names(member)
            self.opaque |= bool(OPAQUE_METHODS & class_names(member))
            for method in member.methods.values():
                self._read(method)

    def _read(self, method: Function) -> None:
        me = self_name(method)
        if not me:
            return
        bare: set[int] = set()  # where the module itself, not one of its attributes, is handed to somebody
        spared: set[int] = set()
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and dotted(node.value) == me:
                spared.add(id(node.value))
                if not isinstance(node.ctx, ast.Load):
                    self.own.add(node.attr)
                self.opaque |= node.attr == "__dict__"
            elif isinstance(node, ast.Call):
                self._call(node, me, spared)
            elif isinstance(node, ast.Return | ast.Compare):
                spared |= {id(child) for child in ast.iter_child_nodes(node)}
            elif isinstance(node, ast.Name) and node.id == me:
                bare.add(id(node))
        self.opaque |= bool(bare - spared)

    def _call(self, node: ast.Call, me: str, spared: set[int]) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in HARMLESS_CALLS or name == "__init__":
            spared |= {id(a) for a in node.args}
        places = {"hasattr": 1, "getattr": 1, "setattr": 1, **dict.fromkeys(REGISTERS, 0)}
        if name not in places:
            return
        place = places[name]
        if place and not (node.args and dotted(node.args[0]) == me):
            return
        given = [*node.args[place : place + 1], *(k.value for k in node.keywords if k.arg == "name")]
        word = given[0].value if given and isinstance(given[0], ast.Constant) else None
        if isinstance(word, str):
            self.own.add(word.split(".")[0])
        elif name not in ("hasattr", "getattr"):
            self.opaque = True

    def undefined_attributes(self) -> Iterator[tuple[str, int, bool]]:
        """(name, line, only on a branch) of what forward, __init__ or a method they call reads and nothing sets."""
        if self.opaque:
            return
        waiting, seen, told = ["__init__", "forward"], set(), set()
        while waiting:
            name = waiting.pop()
            method = self.view.method(name)
            if name in seen or method is None:
                continue
            seen.add(name)
            me = self_name(method)
            maybe = _branches(method)
            guarded = {id(n) for t in ast.walk(method) if isinstance(t, ast.Try) for s in t.body for n in ast.walk(s)}
            for node in ast.walk(method):
                if not me or not isinstance(node, ast.Attribute) or dotted(node.value) != me:
                    continue
                waiting.append(node.attr)
                known = any(node.attr in names for names in (self.own, GIVEN, self.facts.set_from_outside, told))
                if not known and not node.attr.startswith("_") and id(node) not in guarded:
                    told.add(node.attr)
                    yield node.attr, node.lineno, id(node) in maybe

    def unused_modules(self) -> Iterator[tuple[str, int]]:
        """(name, line) of the parts that __init__ creates and nothing in the file reads."""
        init = self.view.methods.get("__init__")
        me = self_name(init) if init else ""
        if not me or self.facts.reads_by_name or self._walks_its_parts():
            return
        for node in ast.walk(init):
            if not isinstance(node, ast.Assign) or len(node.targets) > 1 or not self.makes_module(node.value):
                continue
            target = node.targets[0]
            own = isinstance(target, ast.Attribute) and dotted(target.value) == me
            if own and target.attr not in self.facts.loaded and target.attr not in self.facts.strings:
                yield target.attr, node.lineno

    def makes_module(self, value: ast.AST) -> bool:
        """Whether an expression builds a module of torch or of this file."""
        name = dotted(value.func) if isinstance(value, ast.Call) else ""
        last = full_name(name, self.imported).rpartition("torch.nn.")[2]
        return name in self.modules or (
            last != full_name(name, self.imported) and last[:1].isupper() and last not in ("Parameter", "Buffer")
        )

    def _walks_its_parts(self) -> bool:
        for member in self.family:
            for name, method in member.methods.items():
                if not _starts_weights(name) and any(
                    isinstance(n, ast.Attribute) and n.attr in WALKS for n in ast.walk(method)
                ):
                    return True
        return False

    def without_super_init(self) -> tuple[int, str] | None:
        """(line, what is wrong) where __init__ does not start the module before it gives it parts."""
        init = self.view.methods.get("__init__")
        me = self_name(init) if init else ""
        if not me or init.decorator_list:
            return None
        starts = [n.lineno for n in ast.walk(init) if isinstance(n, ast.Attribute) and n.attr == "__init__"]
        handed = any(isinstance(n, ast.Call) and any(dotted(a) == me for a in n.args) for n in ast.walk(init))
        if not starts:
            return None if handed else (init.lineno, "never calls super().__init__()")
        for statement in init.body:  # only what is certain: the first lines, without branches
            if statement.lineno >= min(starts):
                return None
            if isinstance(statement, ast.Assign) and self.makes_module(statement.value):
                target = dotted(statement.targets[0])
                if target.startswith(f"{me}."):
                    return statement.lineno, f"sets {target} before it calls super().__init__()"
        return None


def self_name(method: Function) -> str:
    """What a method calls its object; empty where it has none, or gives the name to something else too."""
    arguments = [*method.args.posonlyargs, *method.args.args]
    if not arguments or any(dotted(d) in ("staticmethod", "classmethod") for d in method.decorator_list):
        return ""
    name = arguments[0].arg
    for node in ast.walk(method):
        again = isinstance(node, ast.arg) and node.arg == name and node is not arguments[0]
        if again or (isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load)):
            return ""
    return name


def _branches(method: Function) -> set[int]:
    """The nodes that some calls of a method never reach."""
    found: set[int] = set()
    for node in ast.walk(method):
        if isinstance(node, ast.If):
            inner = [*node.body, *node.orelse]
        elif isinstance(node, ast.IfExp):
            inner = [node.body, node.orelse]
        elif isinstance(node, ast.BoolOp):
            inner = node.values[1:]
        else:
            continue
        if id(inner[0]) not in found:  # a branch of a branch was walked with it
            found |= {id(part) for start in inner for part in ast.walk(start)}
    return found


def class_names(view: ClassView) -> set[str]:
    """The names that the body of a class binds."""
    names: set[str] = set()
    waiting: list[ast.AST] = list(view.node.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        waiting += ast.iter_child_nodes(node)
    return names


def _starts_weights(method: str) -> bool:
    return method == "__init__" or method.lstrip("_").startswith(("init", "reset", "tie"))


def _loaded(nodes: Sequence[ast.AST], views: Sequence[ClassView]) -> Iterator[str]:
    """Every attribute the file reads, but for weights that are only started or tied: self.head.weight in __init__."""
    idle: set[int] = set()
    for view in views:
        for name, method in view.methods.items():
            if _starts_weights(name):
                idle |= {id(n.value) for n in ast.walk(method) if isinstance(n, ast.Attribute)
                         and n.attr in ("weight", "bias")}  # fmt: skip
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in idle:
            yield node.attr
