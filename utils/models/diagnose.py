"""Why an exported model.py cannot work, read from its text: each defect with its line and the likely fix.

Runs nothing and imports no torch. In doubt it is silent: a false alarm costs a person more than a late error.
"""

import ast
import difflib
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from utils.models.code_view import (
    ClassView,
    Code,
    UnreadableCode,
    classes,
    dotted,
    full_name,
    imported_names,
    printable,
    read_code,
    words,
)
from utils.models.findings import Finding
from utils.models.module_view import FileFacts, ModuleView, self_name
from utils.models.names import unknown_names

MAX_FINDINGS = 100
MAX_VALUES = 10_000  # of a config

# Words in a parameter's name that say it comes from outside the model, or from a node inside it.
OUTSIDE = words("input inputs ids id token tokens src tgt source target targets mask masks label labels text position "
              "positions segment segments cache past x idx")  # fmt: skip
NODES = words("attention attn mha mhsa mlp ffn feedforward residual res norm layernorm rmsnorm layer embed embedding "
            "embeddings emb linear dense dropout block hidden head proj projection add gate moe expert softmax conv "
            "activation gelu relu rope decoder encoder transformer node")  # fmt: skip
RESULT = re.compile(r"_(output|outputs|out|hidden|result)$")
DECODER = re.compile(r"decoder|gpt|causal|llama|autoregressive", re.IGNORECASE)
MASK = re.compile(r"is_causal|tri[lu]|mask|alibi|where|causal_|_causal|infinity", re.IGNORECASE)
ATTENDS = re.compile(r"attn|attention|softmax", re.IGNORECASE)
ATTENTION_ELSEWHERE = {"", "transformers", "x_transformers", "flash_attn", "xformers", "mamba_ssm"}
DEVICE = re.compile(r"(cuda|mps|xpu|xla|npu|hpu)(:\d+)?$")
WIDTHS = ("d_model", "n_embd", "hidden_size", "embed_dim", "embedding_dim", "model_dim", "dim")
MAKERS = {"build_model", "create_model", "make_model", "get_model"}
HEADS = ("n_heads", "num_heads", "n_head", "num_attention_heads", "heads", "nhead", "num_head")


def diagnose(code: str, config: dict[str, Any]) -> list[Finding]:
    """Everything that the text of `code` and the values of its `config` show to be wrong.

    Never raises and never runs a line. fail: it cannot work as it stands; warn: it works, look at it. Ordered by
    severity, then line. A file that cannot be read gives one finding, `syntax-error` or `unreadable-code`.
    """
    try:
        read = read_code(code)
    except UnreadableCode as error:
        if error.text or error.line:
            shown = f": {error.text}" if error.text else ""
            return [Finding("syntax-error", f"{error}{shown}", "Correct this line; the export was cut or edited.",
                            line=error.line)]  # fmt: skip
        return [Finding("unreadable-code", str(error), "Export the model again: model.py should hold its code only.")]
    config = config if isinstance(config, dict) else {}
    try:
        found = list(islice(_Diagnosis(read, config).all(), MAX_FINDINGS))
    except RecursionError:  # the nesting is the stranger's to choose; the parser allows more than a walk does
        found = [Finding("unreadable-code", "the code is nested too deeply to be read",
                         "Split its longest expressions.", severity="warn")]  # fmt: skip
    return sorted(set(found), key=lambda f: (f.severity != "fail", f.line, f.code))


class _Diagnosis:
    def __init__(self, code: Code, config: dict[str, Any]) -> None:
        self.code, self.config = code, config
        self.imported = dict(imported_names(code.nodes))
        self.classes = classes(code, self.imported)
        self.modules = {name: view for name, view in self.classes.items() if view.is_module}
        self.nodes = code.nodes
        self.facts = FileFacts(self.nodes, list(self.classes.values()))
        self.values = list(_values(config))
        self.outermost = self._outermost()

    def _outermost(self) -> ClassView | None:
        """The class the config names, else the one that no other class mentions; None where that is open."""
        named = self.config.get("model_name")
        if isinstance(named, str) and named in self.modules:
            return self.modules[named]
        if any(view.foreign and not view.is_module for view in self.classes.values()):
            return None  # any of those may be the model
        mentioned = set()
        for name, view in self.classes.items():
            inside = {n.id for n in ast.walk(view.node) if isinstance(n, ast.Name)}
            mentioned |= inside - {name}
        free = [view for name, view in self.modules.items() if name not in mentioned]
        if len(free) > 1:  # some are left over; only a model looks up tokens
            free = [view for view in free if any(_is_table(n) for n in ast.walk(view.node))]
        return free[0] if len(free) == 1 else None

    def all(self) -> Iterator[Finding]:
        yield from self.model()
        if self.outermost is not None:
            yield from self.forward(self.outermost)
        yield from islice(self.config_and_code(), 10)  # so that no kind crowds out the others
        yield from self.names()
        yield from islice(self.devices(), 10)
        for view in self.modules.values():
            yield from self.module(view)

    # -- names

    def names(self) -> Iterator[Finding]:
        for item in unknown_names(self.code.tree):
            name, place = printable(item.name, 60), f" in {printable(item.place, 80)}" if item.place else ""
            if item.bound_later:
                message = f"{name} is used{place} before line {item.bound_later} gives it a value"
                fix = f"Move line {item.bound_later} above line {item.line}, or use the value that exists by then."
            else:
                message = f"{name} is used{place}, but nothing defines it"
                fix = f"Did you mean {printable(item.similar, 60)}?" if item.similar else (
                    f"Import or compute {name} before line {item.line}.")  # fmt: skip
            yield Finding("undefined-name", message, fix, line=item.line)

    # -- which class is the model

    def model(self) -> Iterator[Finding]:
        stars = any(isinstance(n, ast.ImportFrom) and n.names[0].name == "*" for n in self.nodes)
        makers = any(isinstance(n, ast.FunctionDef) and n.name in MAKERS for n in self.code.tree.body)
        if not self.modules and not stars and not makers and not any(view.foreign for view in self.classes.values()):
            names = ", ".join(printable(name, 40) for name in list(self.classes)[:5]) or "none"
            yield Finding("no-model", f"no class derives from torch.nn.Module (classes found: {names})",
                          "Write the model as a class: class Model(nn.Module), with __init__ and forward.")  # fmt: skip
        named = self.config.get("model_name")
        if self.modules and isinstance(named, str) and named.isidentifier() and named not in self.classes:
            near = difflib.get_close_matches(named[:100], list(self.modules)[:500], 1, 0.5)
            near = near or ([self.outermost.name] if self.outermost else [])
            if not any(isinstance(n, ast.FunctionDef) and n.name == named for n in self.nodes) and not stars:
                yield Finding("unknown-model-name",
                              f"config.json names the model {printable(named, 60)}, but model.py has no such class",
                              f'Set "model_name" to "{printable(near[0], 60)}".' if near else "Correct model_name.",
                              file="config.json")  # fmt: skip

    # -- every module

    def module(self, view: ClassView) -> Iterator[Finding]:
        if view.unknown:
            return
        outermost = view is self.outermost
        read = ModuleView(view, self.modules, self.imported, self.facts)
        if wrong := read.without_super_init():
            yield Finding("no-super-init", f"__init__ of {view.name} {wrong[1]}; torch raises an error there",
                          "Make super().__init__() the first line of __init__.", line=wrong[0])  # fmt: skip
        forward = view.method("forward")
        if forward is None and outermost and not ({"forward", "__call__"} & read.own):
            yield Finding("no-forward", f"{view.name} has no forward method, so it cannot be called",
                          "Add def forward(self, input_ids) that returns the logits.", line=view.node.lineno
                          )  # fmt: skip
        own = view.methods.get("forward")
        if own is not None and _returns_nothing(own):
            yield Finding("no-return", f"forward of {view.name} returns nothing, so its caller gets None",
                          "End forward with return and the result.", line=own.lineno,
                          severity="fail" if outermost else "warn")  # fmt: skip
        for name, line, branch in read.undefined_attributes():
            near = difflib.get_close_matches(name[:100], sorted(read.own)[:500], 1, 0.7)
            hint = f"Did you mean self.{printable(near[0], 60)}?" if near else f"Create self.{name} in __init__."
            yield Finding("undefined-attribute", f"{view.name} uses self.{printable(name, 60)}, but nothing sets it",
                          hint, line=line, severity="warn" if branch else "fail")  # fmt: skip
        for name, line in read.unused_modules():
            yield Finding("unused-module", f"{view.name} creates self.{printable(name, 60)} and never uses it",
                          "Use it in forward if it was forgotten there; else delete it.", line=line,
                          severity="warn")  # fmt: skip

    # -- the outermost forward

    def forward(self, view: ClassView) -> Iterator[Finding]:
        forward = view.method("forward")
        if forward is None:
            return
        arguments = forward.args
        positional = [*arguments.posonlyargs, *arguments.args]
        required = positional[1 : len(positional) - len(arguments.defaults)]
        pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        required += [argument for argument, default in pairs if default is None]
        names = [printable(a.arg, 60) for a in required if is_intermediate(a.arg)]
        if len(required) == 1 and not RESULT.search(required[0].arg):
            names = []  # the one input, whatever it is called
        if names:
            shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
            results = "results" if len(names) > 1 else "a result"
            yield Finding(
                "forward-takes-intermediates",
                f"forward of {view.name} has {len(names)} of its parameters named like {results} of the model's own "
                f"nodes: {shown}. The exporter wrote a node's input as a parameter of forward, so nobody can call it",
                f"Remove it from forward's parameters and compute it inside: {self._computing(view, names[0])}.",
                line=forward.lineno,
            )
        if (line := _ends_in_softmax(forward, view, self.imported)) and not view.unknown:
            yield Finding("softmax-on-output", f"forward of {view.name} ends in a softmax: it returns probabilities "
                          "where training expects logits", "Return the values from before the softmax.", line=line,
                          severity="warn")  # fmt: skip
        yield from self.causality(view)

    def _computing(self, view: ClassView, name: str) -> str:
        """The statement that should make an intermediate, in the model's own names where it has such a part."""
        node = RESULT.sub("", name)
        init = view.method("__init__")
        me = self_name(init) if init else ""
        inside = ast.walk(init) if init else ()
        parts = [n.attr for n in inside if isinstance(n, ast.Attribute) and dotted(n.value) == me]
        part = next(iter([p for p in parts if p == node] or difflib.get_close_matches(node, parts[:500], 1, 0.6)), "")
        if part:
            return f"{name} = self.{part}(...) on the result of the node before it"
        return f"{name} = ... from the result of the node before it"

    def causality(self, view: ClassView) -> Iterator[Finding]:
        said = [view.name, *(v for _, v in self.values if isinstance(v, str) and len(v) < 100)]
        said += [key for key, value in self.values if value is True]
        names = {name for node in self.nodes for name in _names_of(node)}
        outside = any(full.split(".")[0] in ATTENTION_ELSEWHERE or full[0] == "." for full in self.imported.values())
        claim = next((text for text in said if DECODER.search(text)), None)
        if claim is None or outside or "*" in self.imported or any(MASK.search(name) for name in names):
            return
        if any(ATTENDS.search(name) for name in names):
            yield Finding("no-causal-mask", f"{printable(claim, 60)} says this is a decoder, but nothing in the code "
                          "masks the future: each token sees those it should predict",
                          "Pass is_causal=True to scaled_dot_product_attention, or mask with torch.tril.",
                          line=view.node.lineno, severity="warn")  # fmt: skip

    # -- the config

    def config_and_code(self) -> Iterator[Finding]:
        yield from self.vocabulary()
        yield from heads(self.config)

    def vocabulary(self) -> Iterator[Finding]:
        allowed = {v for key, v in self.values if "vocab" in key.lower() and type(v) is int and v > 0}
        tables: list[tuple[int, int]] = []
        for node in self.nodes:
            if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
                continue
            called = full_name(dotted(node.value.func), self.imported)
            if called not in ("torch.nn.Embedding", "nn.Embedding"):
                continue
            given = [*node.value.args[:1], *(k.value for k in node.value.keywords if k.arg == "num_embeddings")]
            number = given[0].value if given and isinstance(given[0], ast.Constant) else None
            if type(number) is not int:
                return  # computed, perhaps from the config: nothing to compare
            target = dotted(node.targets[0]).rpartition(".")[2].lower()
            if not re.search(r"pos|seg|type|time|wpe", target):
                tables.append((number, node.lineno))
        others = {v for key, v in self.values if "vocab" not in key.lower() and type(v) is int}
        tables = [(number, line) for number, line in tables if number not in others]
        if not allowed or not tables or allowed & {number for number, _ in tables}:
            return
        number, line = max(tables)
        said = max(allowed)
        yield Finding("vocabulary-mismatch", f"the embedding has {number:,} rows, but config.json says {said:,} tokens",
                      f"Set both to the tokenizer's number, such as nn.Embedding({said}, ...).", line=line,
                      severity="fail" if number < said else "warn")  # fmt: skip

    # -- devices

    def devices(self) -> Iterator[Finding]:
        fix = "Make new tensors on the device of an input: device=input_ids.device; who runs the model places it."
        for node in self.nodes:
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            given = [*(node.args[:1] if name in ("to", "device") else ()),
                     *(k.value for k in node.keywords if k.arg == "device")]  # fmt: skip
            text = next((g.value for g in given if isinstance(g, ast.Constant) and isinstance(g.value, str)), "")
            if DEVICE.match(text) or (name == "cuda" and full_name(dotted(node.func), self.imported) != "torch.cuda"):
                said = f'"{printable(text, 20)}"' if text else ".cuda()"
                yield Finding("hard-coded-device", f"{said} fixes the device, so the code fails or slows elsewhere",
                              fix, line=node.lineno, severity="warn")  # fmt: skip


def is_intermediate(name: str) -> bool:
    """Whether a parameter's name is that of a node's result, such as mhsa_0_output, not of a token input."""
    parts = set(re.split(r"[_\d]+", name.lower()))
    if parts & OUTSIDE:
        return bool(parts & NODES and RESULT.search(name) and not parts & {"mask", "masks"})
    return bool(RESULT.search(name) or (parts & NODES and re.search(r"\d", name)))


def heads(config: dict[str, Any]) -> Iterator[Finding]:
    """Whether every width in the config divides by the number of heads beside it."""
    for values in _dicts(config):
        if any("head_dim" in str(key) or "head_size" in str(key) for key in values):
            continue
        width = next(((key, values[key]) for key in WIDTHS if type(values.get(key)) is int), None)
        head = next(((key, values[key]) for key in HEADS if type(values.get(key)) is int), None)
        if width is None or head is None or (head[1] > 0 and width[1] % head[1] == 0):
            continue
        (wide, width_n), (many, head_n) = width, head
        good = [n for n in range(1, 257) if width_n > 0 and width_n % n == 0]
        near = min(good, key=lambda n: abs(n - head_n), default=1)
        message = f"{wide} = {width_n} does not divide by {many} = {head_n}"
        yield Finding("heads-do-not-divide", message, f"Set {many} to {near}, or choose another {wide}.",
                      file="config.json")  # fmt: skip


def _dicts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config and the dicts within it: a graph's config keeps them in nodes, each with params."""
    waiting: list[Any] = [config]
    for _ in range(MAX_VALUES):
        if not waiting:
            return
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += list(value.values())[:MAX_VALUES]
        elif isinstance(value, list):
            waiting += value[:MAX_VALUES]


def _values(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for values in _dicts(config):
        for key, value in list(values.items())[:MAX_VALUES]:
            if not isinstance(value, dict | list):
                yield str(key), value


def _is_table(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute | ast.Name) and dotted(node).rpartition(".")[2] == "Embedding"


def _names_of(node: ast.AST) -> Iterator[str]:
    """The names in a node, without those of classes: a class may be called causal and not be."""
    for attribute in ("id", "attr", "arg"):
        word = getattr(node, attribute, None)
        if isinstance(word, str):
            yield word
    if isinstance(node, ast.FunctionDef):
        yield node.name


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of the functions and classes inside it."""
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)


def _returns_nothing(forward: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    nodes = list(_own(forward))
    gives = any(isinstance(n, ast.Yield | ast.YieldFrom) or (isinstance(n, ast.Return) and n.value) for n in nodes)
    abstract = isinstance(forward.body[-1], ast.Raise | ast.Pass) or bool(forward.decorator_list)
    only_text = all(isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in forward.body)
    return not gives and not abstract and not only_text


def _ends_in_softmax(forward: ast.FunctionDef | ast.AsyncFunctionDef, view: ClassView, imported: dict[str, str]) -> int:
    """The line of the softmax whose result forward returns last; 0 where there is none."""
    last = forward.body[-1]
    value = last.value if isinstance(last, ast.Return) else None
    if isinstance(value, ast.Name):
        made = [s.value for s in forward.body if isinstance(s, ast.Assign) and dotted(s.targets[0]) == value.id]
        value = made[-1] if made else None
    if not isinstance(value, ast.Call):
        return 0
    called = value.func
    if isinstance(called, ast.Call):  # nn.Softmax(dim=-1)(x)
        return value.lineno if full_name(dotted(called.func), imported).endswith("nn.Softmax") else 0
    name = called.attr if isinstance(called, ast.Attribute) else dotted(called)
    if name == "softmax" and dotted(called).split(".")[0] != self_name(forward):
        return value.lineno
    init = view.method("__init__")
    made_by = {dotted(n.targets[0]): n.value for n in ast.walk(init) if isinstance(n, ast.Assign)} if init else {}
    maker = made_by.get(dotted(called))
    is_softmax = isinstance(maker, ast.Call) and full_name(dotted(maker.func), imported).endswith("nn.Softmax")
    return value.lineno if is_softmax else 0
