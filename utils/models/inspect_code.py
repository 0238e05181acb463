"""What somebody's model.py would touch, read from its text: a lint for a person who decides, not a wall.

Runs nothing, imports no torch, knows no model. Code can hide anything from a reading; whoever runs it boxes it.
"""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from utils.models.code_view import Code, UnreadableCode, dotted, imported_names, printable, read_code, words
from utils.runtime.table import Table

LINT = "This reading is a lint, not a wall: code can hide anything from it."
MAX_SHOWN = 50  # of each kind; `counts` has them all
MAX_MEANINGS = 8  # of one name, followed through `x = open`

FILES, NETWORK, PROCESSES = "file access", "network", "processes"
ENVIRONMENT, DYNAMIC, INTROSPECTION = "environment", "dynamic code", "introspection"
HIDDEN, AT_IMPORT = "hidden text", "runs at import"
KINDS = (FILES, NETWORK, PROCESSES, ENVIRONMENT, DYNAMIC, INTROSPECTION, HIDDEN, AT_IMPORT)

USUAL = words(
    "__future__ abc accelerate bisect causal_conv1d collections contextlib copy dataclasses decimal einops enum "
    "flash_attn fractions functools heapq itertools jaxtyping json logging math mamba_ssm numbers numpy operator "
    "opt_einsum random re safetensors scipy statistics string textwrap time torch torchvision transformers triton "
    "typing typing_extensions uuid warnings xformers"
)

# A name, and with it everything below it; the longest that fits decides, and "" is harmless.
_NAMES = {
    FILES: """io os pathlib shutil tempfile glob fileinput fcntl mmap pickle _pickle cPickle dill joblib cloudpickle
        shelve dbm sqlite3 csv zipfile tarfile gzip h5py pandas pyarrow builtins.open numpy.load numpy.save numpy.savez
        numpy.savez_compressed numpy.loadtxt numpy.savetxt numpy.genfromtxt numpy.fromfile numpy.memmap numpy.DataSource
        numpy.lib.npyio numpy.lib.format torch.load torch.save torch.serialization torch.jit.load torch.jit.save
        torch.export.load torch.export.save torch.package torch.from_file torch.UntypedStorage torch.onnx
        torch.utils.data.datapipes safetensors.safe_open safetensors.torch.load_file safetensors.torch.save_file
        safetensors.torch.load_model safetensors.torch.save_model logging.FileHandler logging.handlers logging.config
        torch.profiler torch.utils.tensorboard torch.utils.serialization""",
    NETWORK: """socket _socket ssl requests urllib urllib3 http httpx aiohttp ftplib smtplib telnetlib poplib imaplib
        nntplib xmlrpc socketserver websocket websockets paramiko boto3 botocore google huggingface_hub datasets wandb
        comet_ml mlflow gradio webbrowser grpc zmq gdown kagglehub smart_open fsspec torch.hub torch.utils.model_zoo
        torch.distributed transformers.utils.hub transformers.pipeline asyncio.open_connection""",
    PROCESSES: """subprocess _posixsubprocess multiprocessing _multiprocessing concurrent threading _thread asyncio
        signal pty atexit resource faulthandler sched psutil os.system os.popen os.exec os.spawn os.fork os.forkpty
        os.kill os.killpg os.abort os._exit os.posix_spawn os.posix_spawnp os.startfile os.setuid os.setgid os.nice
        os.execl os.execle os.execlp os.execlpe os.execv os.execve os.execvp os.execvpe os.spawnl os.spawnle
        os.spawnlp os.spawnlpe os.spawnv os.spawnve os.spawnvp os.spawnvpe torch.multiprocessing
        torch.utils.cpp_extension exit quit sys.exit""",
    ENVIRONMENT: """sys platform getpass pwd grp keyring dotenv kaggle_secrets google.colab site sysconfig os.environ
        os.environb os.getenv os.getenvb os.putenv os.unsetenv os.getcwd os.uname os.getlogin os.getuid locale
        builtins.input""",
    DYNAMIC: """eval exec compile __import__ breakpoint importlib imp runpy code codeop ctypes _ctypes cffi codecs
        marshal zipimport pkgutil builtins __builtins__ types.FunctionType types.CodeType types.LambdaType
        types.MethodType types.ModuleType base64 binascii zlib lzma bz2 numpy.ctypeslib numpy.f2py
        torch.ops.load_library torch.classes.load_library ast pdb cProfile timeit doctest operator.attrgetter
        operator.methodcaller numba pip setuptools IPython bdb trace gettext""",
    INTROSPECTION: """inspect gc globals locals vars traceback dis weakref sys._getframe sys.settrace sys.setprofile
        sys.modules""",
    "": """os.path.join os.path.basename os.path.dirname os.path.splitext os.path.normpath os.path.sep os.cpu_count
        os.name os.sep os.linesep os.fspath sys.version sys.version_info sys.maxsize sys.float_info sys.platform
        sys.byteorder inspect.isfunction inspect.signature weakref.ref torch.distributed.is_available
        torch.distributed.is_initialized torch.onnx.is_in_onnx_export torch.distributed.get_rank
        torch.distributed.get_world_size""",
}  # fmt: skip
TABLE = {name: kind for kind, names in _NAMES.items() for name in names.split()}
# Without an import these are Python's own; any other bare name is somebody's variable.
BARE = {"open": "builtins.open", "__builtins__": "__builtins__"}
BARE |= {name: name for name in words("eval exec compile __import__ breakpoint globals locals vars exit quit")}
# Modules that others carry within them, as in torch.os.system.
CARRIED = {"os", "sys", "subprocess", "socket", "shutil", "importlib", "builtins", "ctypes", "pickle", "marshal"}
METHODS = {
    **dict.fromkeys(words("read_text write_text read_bytes write_bytes unlink symlink_to hardlink_to iterdir rglob "
                    "tofile save_pretrained from_file"), FILES),
    **dict.fromkeys(words("from_pretrained push_to_hub load_state_dict_from_url urlopen"), NETWORK),
    **dict.fromkeys(words("__subclasses__ __globals__ __builtins__ __bases__ __base__ __mro__ __code__ __closure__ "
                    "__getattribute__ __reduce__ __reduce_ex__ __import__ __loader__ __spec__ f_globals f_locals "
                    "f_back gi_frame cr_frame tb_frame co_code __defaults__ __wrapped__"), INTROSPECTION),
}  # fmt: skip
_WALKS = {name for name, kind in METHODS.items() if kind == INTROSPECTION and name.startswith("__")} | {"__dict__"}

# At the top of a file these only make types, loggers and numbers.
QUIET_CALLS = words(
    "logging.getLogger typing.TypeVar typing.NewType typing.ParamSpec typing.cast collections.namedtuple "
    "dataclasses.dataclass dataclasses.field functools.lru_cache functools.cache functools.wraps functools.partial "
    "enum.auto torch.no_grad torch.inference_mode torch.device torch.tensor torch.finfo math.sqrt math.log math.log2 "
    "math.pi math.ceil math.floor re.compile int float str bool tuple list dict set frozenset len range min max abs "
    "round sum sorted isinstance hasattr os.path.join os.path.dirname os.path.basename"
)
_MAIN = ast.dump(ast.parse("__name__ == '__main__'", mode="eval").body)
_ENCODED = re.compile(r"[A-Za-z0-9+/=_\-\s]{200,}|(?:\\x[0-9a-fA-F]{2}|[0-9a-fA-F]{2}){100,}")
_COOKIE = re.compile(r"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")  # Boucher & Anderson 2021, https://arxiv.org/abs/2111.00169


@dataclass(frozen=True)
class Import:
    """One module that the code imports."""

    module: str
    line: int
    usual: bool
    """What models are made of, such as torch, math or einops."""


@dataclass(frozen=True)
class Use:
    """One place that touches something outside the model."""

    kind: str
    what: str
    """What is touched, by its full name whatever the code calls it."""
    line: int
    code: str
    """That line, cut to a readable length."""


@dataclass(frozen=True)
class CodeReport:
    """What `inspect_code` found; prints itself as text, and as a table in a notebook."""

    lines: int = 0
    imports: tuple[Import, ...] = ()
    uses: tuple[Use, ...] = ()
    """In the order of their kinds, then lines; at most 50 of a kind."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many of each kind there are, shown or not."""
    problem: str = ""
    """Why the code could not be read; then nothing else is known of it."""

    @property
    def summary(self) -> str:
        """One line: nothing unusual, or how many of what."""
        if self.problem:
            return f"not read: {self.problem}"
        return ", ".join(f"{n} x {kind}" for kind, n in self.counts.items()) or "nothing unusual found"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, strings and lists, ready for JSON."""
        return {**asdict(self), "summary": self.summary, "note": LINT}

    def table(self) -> Table:
        """The summary, the imports, then every use with its line."""
        rows = [("summary", "", self.summary)]
        usual = list(dict.fromkeys(item.module for item in self.imports if item.usual))
        if usual:
            rows.append(("usual imports", "", ", ".join(usual)))
        rows += [("unusual import", str(item.line), item.module) for item in self.imports if not item.usual]
        for kind in KINDS:
            shown = [use for use in self.uses if use.kind == kind]
            rows += [(kind, str(use.line), f"{use.what}\n    {use.code}") for use in shown]
            if self.counts.get(kind, 0) > len(shown):
                rows.append((kind, "", f"and {self.counts[kind] - len(shown)} more"))
        title = "model.py, not read" if self.problem else f"model.py, {self.lines} lines, read and not run"
        return Table(rows, ("what", "line", "code"), title, LINT, right=1)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def inspect_code(source: str) -> CodeReport:
    """Read `source`, a whole Python file, and list what it imports and touches outside the model.

    Never raises and never runs a line of it; text that cannot be read (not Python, over 5 MB, nested too deeply)
    comes back with a `problem`. Follows simple second names: `import os as o`, `from os import system as s`,
    `x = open`. Method names such as `from_pretrained` count on any object, because their object is unknown.
    """
    try:
        code = read_code(source)
    except UnreadableCode as error:
        return CodeReport(problem=f"{error}" + (f": {error.text}" if error.text else ""))
    reader = _Reader(code)
    found = sorted(set(reader.uses()), key=lambda use: (KINDS.index(use.kind), use.line, use.what))
    imports = sorted(set(reader.imports()), key=lambda item: (item.line, item.module))
    unusual = [item for item in imports if not item.usual]
    counts = Counter(use.kind for use in found)
    shown = [use for kind in KINDS for use in [u for u in found if u.kind == kind][:MAX_SHOWN]]
    ordered = {kind: counts[kind] for kind in KINDS if counts[kind]}
    if unusual:
        ordered = {"unusual import": len(unusual), **ordered}
    kept = [item for item in imports if item.usual][:MAX_SHOWN] + unusual[:MAX_SHOWN]
    return CodeReport(len(code.lines), tuple(kept), tuple(shown), ordered)


def kind_of(name: str) -> str:
    """The kind that a full name such as `os.environ.get` belongs to; empty for a harmless one."""
    parts = name.split(".")[:8]
    starts = [0, *(i for i in range(1, len(parts)) if parts[i] in CARRIED)]
    for start in reversed(starts):
        for end in range(len(parts), start, -1):
            known = ".".join(parts[start:end])
            if known in TABLE:
                return TABLE[known]
    return ""


class _Reader:
    """One reading of one file. Trees are walked without recursion: nesting is the stranger's to choose."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.nodes = code.nodes
        self.meanings: dict[str, set[str]] = defaultdict(set)
        self.imported: set[str] = set()
        for name, meaning in imported_names(code.nodes):
            self.imported.add(name)
            self._means(name, {meaning})
        assigned = [n for n in self.nodes if isinstance(n, ast.Assign | ast.AnnAssign | ast.NamedExpr) and n.value]
        for _ in range(3):  # x = open; y = x; z = y: enough for a lint
            for node in assigned:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    self._means(dotted(target), self.resolve(node.value))

    def _means(self, name: str, meanings: set[str]) -> None:
        known = self.meanings[name] if name and meanings else set()
        known.update(sorted(meanings - known)[: MAX_MEANINGS - len(known)])

    def resolve(self, node: ast.AST) -> set[str]:
        """The full names that an expression may stand for: `o.system` is os.system after `import os as o`."""
        tail: list[str] = []
        while isinstance(node, ast.Attribute) and len(tail) < 50:
            if dotted(node) in self.meanings:
                break
            tail.append(node.attr)
            node = node.value
        end = "".join("." + part for part in reversed(tail))
        if isinstance(node, ast.Call):
            return {name + end for name in self._called(node)}
        name = dotted(node)
        if name in self.meanings:
            return {known + end for known in self.meanings[name] if len(known) < 200}
        return {BARE[name] + end} if name in BARE else set()

    def _called(self, node: ast.Call) -> set[str]:
        """The module or attribute that `__import__("os")` or `getattr(os, "system")` gives."""
        first, second = ([a.value if isinstance(a, ast.Constant) else None for a in node.args] + [None, None])[:2]
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and isinstance(second, str):
            inner = node.args[0]
            base = self.resolve(inner) if isinstance(inner, ast.Name | ast.Attribute) else set()
            return {f"{name}.{second}" for name in base}
        if isinstance(first, str) and dotted(node.func).rpartition(".")[2] in ("__import__", "import_module"):
            return {first}
        return set()

    def imports(self) -> Iterator[Import]:
        for node in self.nodes:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                names = [f"{module}.{a.name}" if kind_of(f"{module}.{a.name}") else module for a in node.names]
            else:
                continue
            for name in names:
                usual = name.split(".")[0] in USUAL and not kind_of(name)
                yield Import(printable(name.split(".")[0] if usual else name), node.lineno, usual)

    def uses(self) -> Iterator[Use]:
        yield from self._text()
        inner: set[int] = set()  # parts of a chain that is reported as a whole
        for node in self.nodes:
            if isinstance(node, ast.Attribute) and id(node) not in inner:
                yield from self._attribute(node)
                part: ast.AST = node.value
                while isinstance(part, ast.Attribute):
                    inner.add(id(part))
                    part = part.value
                inner.add(id(part))
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and id(node) not in inner:
                yield from self._named(self.resolve(node), node)
            elif isinstance(node, ast.Call):
                yield from self._call(node)
            elif isinstance(node, ast.Constant):
                yield from self._constant(node)
            elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                module = "." * node.level + (node.module or "")
                if module.split(".")[0] not in USUAL or kind_of(module):
                    yield self._use(kind_of(module) or DYNAMIC, f"everything of {module}", node)
        yield from self._at_import(self.code.tree.body)

    def _use(self, kind: str, what: str, node: ast.AST) -> Use:
        line = getattr(node, "lineno", 0)
        return Use(kind, printable(what, 80), line, self.code.line(line, getattr(node, "col_offset", 0)))

    def _named(self, names: set[str], node: ast.AST) -> Iterator[Use]:
        for name in names:
            if kind := kind_of(name):
                yield self._use(kind, name.removeprefix("builtins."), node)

    def _attribute(self, node: ast.Attribute) -> Iterator[Use]:
        names = self.resolve(node)
        found = list(self._named(names, node))
        yield from found
        own = dotted(node)
        if not found and not isinstance(node.ctx, ast.Load) and own.split(".")[0] in self.imported:
            full = next(iter(sorted(self.resolve(node.value))), "") + f".{node.attr}"
            if not full.startswith("torch.backends."):  # settings, made to be set
                yield self._use(DYNAMIC, f"changes {full}", node)
        part: ast.AST = node
        for _ in range(50):
            if not isinstance(part, ast.Attribute):
                break
            if part.attr in METHODS and not found:
                yield self._use(METHODS[part.attr], f".{part.attr}", part)
            elif part.attr == "__dict__" and self.resolve(part.value):
                yield self._use(INTROSPECTION, ".__dict__ of a module", part)
            part = part.value

    def _call(self, node: ast.Call) -> Iterator[Use]:
        if dotted(node.func) not in ("getattr", "setattr", "delattr") or not node.args:
            return
        modules = self.resolve(node.args[0]) if isinstance(node.args[0], ast.Name | ast.Attribute) else set()
        if modules and dotted(node.func) != "getattr":
            yield self._use(DYNAMIC, f"changes {min(modules)}", node)
        elif modules and len(node.args) > 1 and not isinstance(node.args[1], ast.Constant):
            yield self._use(DYNAMIC, f"getattr of {min(modules)} by a computed name", node)
        elif modules:
            yield from self._named(self._called(node), node)

    def _constant(self, node: ast.Constant) -> Iterator[Use]:
        value = node.value.decode("latin-1") if isinstance(node.value, bytes) else node.value
        if not isinstance(value, str):
            return
        if value in _WALKS:
            yield self._use(INTROSPECTION, f'"{value}"', node)
        elif len(value) >= 200 and " " not in value[:200] and _ENCODED.match(value):
            yield self._use(HIDDEN, f"{len(value):,} signs that look like encoded data", node)

    def _text(self) -> Iterator[Use]:
        """What the tree does not show: the file says it is written in another alphabet, or turns its direction."""
        for number, line in enumerate(self.code.lines[:2], 1):
            cookie = _COOKIE.match(line)
            if cookie and cookie[1].lower().replace("_", "-") not in ("utf-8", "utf8", "ascii", "us-ascii"):
                what = f"declares the encoding {cookie[1]}: Python may run other code than is shown here"
                yield Use(HIDDEN, printable(what), number, self.code.line(number))
        for number, line in enumerate(self.code.lines, 1):
            if _DIRECTION.search(line):
                yield Use(HIDDEN, "signs that turn the reading direction", number, self.code.line(number))

    # -- what runs when the file is imported

    def _at_import(self, body: list[ast.stmt]) -> Iterator[Use]:
        waiting = list(body)
        while waiting:
            node = waiting.pop()
            parts: list[ast.AST | None] = []
            if isinstance(node, ast.If):
                if not _is_main(node.test):
                    waiting += [*node.body, *node.orelse]
                    parts = [node.test]
                else:
                    waiting += node.orelse
            elif isinstance(node, ast.Try):
                waiting += [*node.body, *node.orelse, *node.finalbody, *(s for h in node.handlers for s in h.body)]
            elif isinstance(node, ast.ClassDef):
                waiting += node.body
                parts = [*node.decorator_list, *node.bases, *node.keywords]
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg]
                parts = [*arguments.defaults, *arguments.kw_defaults, *every, arguments.kwarg, node.returns]
                parts += [d for d in node.decorator_list if not self._quiet_name(d)]
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr):
                parts = [node]
            elif not isinstance(node, ast.Import | ast.ImportFrom | ast.Pass | ast.Global):
                yield self._use(AT_IMPORT, type(node).__name__.lower(), node)
            for part in parts:
                loud = self._loud(part) if part is not None else None
                if loud is not None:
                    what = f"calls {dotted(loud.func) or 'what an expression gives'}"
                    yield self._use(AT_IMPORT, what, loud)

    def _quiet_name(self, node: ast.AST) -> bool:
        names = self.resolve(node) | {dotted(node)}
        return any(name in QUIET_CALLS or name.startswith("torch.nn.init") for name in names)

    def _loud(self, node: ast.AST) -> ast.Call | None:
        """The first call within an expression that does more than make a type, a logger or a number."""
        waiting = [node]
        while waiting:
            part = waiting.pop()
            if isinstance(part, ast.Lambda):  # its body waits until it is called
                continue
            if isinstance(part, ast.Call) and not self._quiet_name(part.func):
                return part
            waiting += ast.iter_child_nodes(part)
        return None


def _is_main(test: ast.expr) -> bool:
    """`if __name__ == "__main__"`, whose body an import skips."""
    return ast.dump(test) == _MAIN
