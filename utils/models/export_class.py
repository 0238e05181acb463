"""From model.py and config.json to a built module: which class, with which arguments. Never calls `forward`."""

import ast
import contextlib
import dataclasses
import inspect
import itertools
import json
import re
import sys
import textwrap
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.models.export_config import Settings, alias_in, flatten
from utils.models.findings import ExportError, Finding
from utils.models.fixes import likely_fix
from utils.models.source import CODE_FILE, CONFIG_FILE
from utils.runtime.randomness import derive_seed

CONFIG_NAMES = ("config", "cfg", "conf", "args", "hparams", "hyperparameters", "model_config", "model_args", "params",
                "settings")  # fmt: skip
SETTINGS_CLASS = re.compile(r"(Config|Conf|Args|Arguments|Params|HParams|Hyper\w*|Settings)$")
ASSUMED = {"device": "cpu", "dtype": torch.float32}  # what a constructor may need and no config says
FACTORIES = ("build_model", "create_model", "make_model", "get_model")
CLASS_KEYS = ("model_name", "class_name", "model_class", "architecture")
USUAL_CLASS = "CustomTransformer"  # the name the builder writes unless told another
_numbers = itertools.count()


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says. Raises ExportError where it is missing, no JSON or no object."""
    text = _text(folder, CONFIG_FILE)
    try:
        config = json.loads(text)
    except ValueError as error:
        line = getattr(error, "lineno", 0)
        raise _failure("config-unreadable", f"it is not JSON: {error}", "export it again", line, CONFIG_FILE) from error
    if not isinstance(config, dict):
        kind = type(config).__name__
        raise _failure("config-unreadable", f"it holds a {kind}, not an object {{...}}", "", 1, CONFIG_FILE)
    return config


def import_code(folder: Path) -> types.ModuleType:
    """Run model.py as a fresh module, never called `__main__`; the folder stays as it is (no bytecode).

    Raises ExportError with the line: not Python, a package that is missing, or whatever the code raises.
    """
    path, text = folder / CODE_FILE, _text(folder, CODE_FILE)
    module = types.ModuleType(f"exported_model_{next(_numbers)}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and annotations look names up
    try:
        exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
    except SyntaxError as error:
        line = error.lineno or 0 if error.filename == str(path) else line_of(error, str(path))
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        message = f"it is not Python {python}: {error.msg}"
        failure = _failure("syntax-error", message, f"write that line for Python {python}, or export it again", line)
    except ImportError as error:
        failure = _import_failure(error, path)
    except (Exception, SystemExit) as error:  # a stranger's code: whatever it raises is the finding
        fix = 'model.py should only define the model: move the rest under if __name__ == "__main__":'
        failure = _failure("import-fails", f"importing it raises {told(error)}", fix, line_of(error, str(path)))
    else:
        return module
    del sys.modules[module.__name__]
    raise failure


def choose(module: types.ModuleType, config: Mapping[str, Any]) -> tuple[Callable[..., Any], str]:
    """The class (or `build_model`) that makes the model, and why it was chosen.

    What the config names comes first, then a function such as `build_model`, then the one public class that no other
    is made from. Raises ExportError where the named class does not exist or more than one is left, with line numbers.
    """
    tree = ast.parse(_text(Path(str(module.__file__)).parent, CODE_FILE))
    lines = {node.name: node.lineno for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    classes = {
        name: thing for name, thing in vars(module).items()
        if isinstance(thing, type) and issubclass(thing, nn.Module) and thing.__module__ == module.__name__
    }  # fmt: skip
    flat = flatten(config)
    for key in CLASS_KEYS:
        if isinstance(flat.get(key), str) and flat[key] in classes:
            return classes[flat[key]], f"class {flat[key]}: {CONFIG_FILE} names it in {key}"
    listed = ", ".join(f"{name} (line {lines.get(name, 0)})" for name in classes) or "no nn.Module at all"
    named = flat.get("model_name")
    if isinstance(named, str) and named.isidentifier() and named[:1].isupper():  # otherwise it is a title
        message = f"model_name is {named}, but model.py defines {listed}"
        raise _failure("class-not-found", message, "name one of them in model_name", 0, CONFIG_FILE)
    for name in FACTORIES:
        build = getattr(module, name, None)
        if inspect.isfunction(build) and build.__module__ == module.__name__ and _callable(build, flat, module):
            return build, f"function {name}"

    reached = _reached(tree)
    top = [name for name in classes if not name.startswith("_")]
    top = [name for name in top if not any(name in reached[other] for other in classes if other != name)]
    if len(top) > 1 and USUAL_CLASS in top:
        top = [USUAL_CLASS]
    if len(top) > 1:  # a loss or a metric beside the model looks nothing up
        for sign in ("Embedding", "Linear"):
            top = [name for name in top if sign in reached[name]] or top
    if len(top) == 1:
        return classes[top[0]], f"class {top[0]}: no other class of model.py is made from it"
    if not classes:
        made = next((name for name, thing in vars(module).items() if isinstance(thing, nn.Module)), "")
        fix = f"return {made} from a function build_model()" if made else "export the model's class"
        raise _failure("class-missing", "it defines no nn.Module class", fix)
    listed = ", ".join(f"{name} (line {lines.get(name, 0)})" for name in top or classes)
    raise _failure("class-ambiguous", f"it could be any of {listed}", f"name one in model_name of {CONFIG_FILE}")


def build_export(folder: Path, seed: int = 0) -> tuple[nn.Module, dict[str, Any], list[str]]:
    """The module of an export, on the CPU, its config, and notes on what was decided.

    Its weights are a pure function of the files and the seed; torch's global random state is as it was.
    Raises ExportError.
    """
    folder = Path(folder)
    config = read_config(folder)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), _own_ways():
        module = import_code(folder)
        maker, why = choose(module, config)
        path = str(module.__file__)
        keywords = arguments(maker, flatten(config), module)
        # Only now, for the file may set a seed of its own. torch.manual_seed would also reseed the GPUs.
        torch.default_generator.manual_seed(derive_seed(seed, "init"))
        try:
            model = _build(maker, keywords)
        except ExportError:
            raise
        except (Exception, SystemExit) as error:  # a stranger's code: whatever it raises is the finding
            given = ", ".join(f"{key}={_brief(value)}" for key, value in keywords.items())
            message = f"{maker.__name__}({given}) raises {told(error)}"
            texts = [key for key, value in keywords.items() if isinstance(value, str) and value.isdigit()]
            fix = likely_fix(error) or f"{CONFIG_FILE} has {', '.join(flatten(config)) or 'no keys'}"
            if texts and "str" in str(error):
                fix = f"write {', '.join(texts)} in {CONFIG_FILE} as numbers, without quotes"
            raise _failure("constructor-fails", message, fix, line_of(error, path) or _first_line(maker)) from error
    if not isinstance(model, nn.Module):
        message = f"{maker.__name__} returns {type(model).__name__}, not an nn.Module"
        raise _failure("constructor-fails", message, "return the model", _first_line(maker))
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        fix = "build it without torch.device('meta'); weights get their values elsewhere"
        raise _failure("constructor-fails", "its weights are on the meta device: they have no values", fix,
                       _first_line(maker))  # fmt: skip
    return model, config, [why]


def arguments(maker: Callable[..., Any], flat: Settings, module: types.ModuleType) -> dict[str, Any]:
    """Keyword arguments for `maker`: those it names, from the config, by any usual word for them.

    Raises ExportError for a required one that the config does not have.
    """
    try:
        parameters = _parameters(maker)
    except ValueError:  # a class written in C
        return {}
    if [p.kind for p in parameters] == [inspect.Parameter.VAR_KEYWORD]:
        return dict(flat)
    function = maker.__init__ if isinstance(maker, type) else maker
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # an annotation is free text; one that cannot be evaluated tells nothing
        hints = {}
    names, chosen = {p.name for p in parameters}, {}
    for p in parameters:
        if p.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        key = alias_in(flat, p.name)
        if p.name not in flat and key in names:  # that value belongs to another argument
            key = None
        if key is not None and isinstance(flat[key], dict) and _is_own(hints.get(p.name), module):
            chosen[p.name] = _config_object(p, hints[p.name], flat[key], module)
        elif key is not None and not dataclasses.is_dataclass(hints.get(p.name)):
            chosen[p.name] = flat[key]
        elif p.name in CONFIG_NAMES or _wants_settings(p, hints.get(p.name), function, module):
            chosen[p.name] = _config_object(p, hints.get(p.name), flat, module)
        elif p.default is p.empty and p.name in ASSUMED:
            chosen[p.name] = ASSUMED[p.name]
        elif p.default is p.empty:
            keys = ", ".join(key for key in flat if isinstance(key, str)) or "no keys"
            message = f"{maker.__name__} needs {p.name}, which {CONFIG_FILE} does not have; it has {keys}"
            raise _failure("missing-argument", message, f"add {p.name} to {CONFIG_FILE}", _first_line(function))
    return chosen


def call_with(maker: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Call `maker` with values by name, also where it takes some by place only."""
    by_place = [p.name for p in inspect.signature(maker).parameters.values()
                if p.kind is p.POSITIONAL_ONLY and p.name in given]  # fmt: skip
    named = {key: value for key, value in given.items() if key not in by_place}
    return maker(*(given[name] for name in by_place), **named)


def _parameters(maker: Callable[..., Any]) -> list[inspect.Parameter]:
    """What a class or function takes; with **kwargs, also what its base classes in the same file take."""
    found = {p.name: p for p in inspect.signature(maker).parameters.values() if p.name != "self"}
    if not isinstance(maker, type):
        return list(found.values())
    for base in maker.__mro__:
        if base.__module__ != maker.__module__ or "__init__" not in vars(base):
            continue
        own = list(inspect.signature(base.__init__).parameters.values())[1:]
        named = [p for p in own if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if base is not maker:
            found.update({p.name: p for p in named if p.name not in found})
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            return [p for p in found.values() if p.kind is not p.VAR_KEYWORD]
    return list(found.values())


def _callable(function: Callable[..., Any], flat: Settings, module: types.ModuleType) -> bool:
    """Whether the config has all that a function needs; one named build_model says so itself."""
    try:
        return function.__name__ == FACTORIES[0] or arguments(function, flat, module) is not None
    except ExportError:
        return False


def _build(maker: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Call `maker`; of a config handed through as it is, what nobody takes is left out."""
    state, named = torch.default_generator.get_state(), inspect.signature(maker).parameters
    while True:
        try:
            return call_with(maker, given)
        except TypeError as error:
            extra = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if not extra or extra[1] not in given or extra[1] in named:
                raise
            given = {key: value for key, value in given.items() if key != extra[1]}
            torch.default_generator.set_state(state)


def _is_own(hint: Any, module: types.ModuleType) -> bool:
    """Whether a type is a class of the file, and no module."""
    return isinstance(hint, type) and hint.__module__ == module.__name__ and not issubclass(hint, nn.Module)


def _wants_settings(p: inspect.Parameter, hint: Any, function: Any, module: types.ModuleType) -> bool:
    """Whether a parameter of any name takes a settings object: by its type, or as the only one and read by name."""
    if dataclasses.is_dataclass(hint):
        return True
    if p.default is not p.empty:
        return False
    if _is_own(hint, module):
        return True
    others = [q for q in inspect.signature(function).parameters.values() if q.default is q.empty and q.name != "self"]
    if [q.name for q in others] != [p.name]:
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # no source to read
        return False
    same = {p.name}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in same:
            same |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    reads = [n.value for n in ast.walk(tree) if isinstance(n, ast.Attribute)
             or (isinstance(n, ast.Subscript) and isinstance(getattr(n.slice, "value", None), str))]  # fmt: skip
    return any(isinstance(value, ast.Name) and value.id in same for value in reads)


@contextlib.contextmanager
def _own_ways() -> Iterator[None]:
    """A file may set how torch works for everybody; afterwards torch works as before."""
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_grad_enabled(before[1])
        torch.set_num_threads(before[2])
        torch.use_deterministic_algorithms(strict, warn_only=warns)


def line_of(error: BaseException, path: str) -> int:
    """The deepest line of the file at `path` that an error passed through; 0 if none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return frames[-1].lineno or 0 if frames else 0


def told(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _config_object(p: inspect.Parameter, hint: Any, flat: Settings, module: types.ModuleType) -> Any:
    """What a parameter called config wants: its annotated class, the file's own ...Config class, or a dict."""
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if isinstance(kind, type) and kind is not type(None)]
    if any(issubclass(kind, dict) or kind is Mapping for kind in kinds):
        return flat
    if not kinds:
        kinds = [
            thing for name, thing in vars(module).items()
            if isinstance(thing, type) and SETTINGS_CLASS.search(name) and thing.__module__ == module.__name__
        ]  # fmt: skip
    kinds = [kind for kind in kinds if kind.__module__ not in ("builtins", "types", "typing")]
    if not kinds:
        return flat
    kind = kinds[0]
    try:
        if kind.__init__ is object.__init__:  # its settings are attributes of the class
            made = kind()
            names = [name for name in dir(kind) if not name.startswith("_") and alias_in(flat, name)]
            for name in names:
                setattr(made, name, flat[name])
            return made
        return call_with(kind, arguments(kind, flat, module))
    except ExportError:
        raise
    except Exception as error:  # a stranger's code: whatever it raises is the finding
        message = f"{kind.__name__} raises {told(error)}"
        line = line_of(error, str(module.__file__)) or _first_line(kind)
        raise _failure("constructor-fails", message, f"look at {CONFIG_FILE}", line) from error


def _import_failure(error: ImportError, path: Path) -> ExportError:
    line = line_of(error, str(path))
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    package = (error.name or "").split(".")[0]
    if re.match(r"from\s+\.", text) or package == __name__.split(".")[0]:  # a file of theirs may be called as ours
        return _failure("missing-package", f"`{_brief_text(text)}` asks for another file, and an export is one file",
                        "copy what it imports into model.py", line)  # fmt: skip
    if isinstance(error, ModuleNotFoundError):
        message = f"it imports {error.name}, which is not installed here"
        return _failure("missing-package", message, f"pip install {package}, or write model.py without it", line)
    fix = f"look at which version of {package} has it" if package else ""
    return _failure("import-fails", f"importing it raises {told(error)}", fix, line)


def _brief_text(text: str) -> str:
    return text if len(text) <= 50 else f"{text[:47]}..."


def _reached(tree: ast.Module) -> dict[str, set[str]]:
    """For every class and function at the top of a file: the names it uses, through functions too."""
    tops = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    used = {}
    for top in tops:
        names = {node.id for node in ast.walk(top) if isinstance(node, ast.Name)}
        used[top.name] = names | {node.attr for node in ast.walk(top) if isinstance(node, ast.Attribute)}
    for _ in tops:  # enough rounds for the longest chain
        for names in used.values():
            names |= set().union(*(used[name] for name in names & used.keys()))
    return used


def _first_line(thing: Any) -> int:
    try:
        return inspect.getsourcelines(thing)[1]
    except (OSError, TypeError):  # no source: written in C, or made by a decorator
        return 0


def _brief(value: Any) -> str:
    return _brief_text(repr(value))


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        message = f"there is none in the folder; an export holds {CODE_FILE} and {CONFIG_FILE}"
        raise _failure("file-missing", message, "export both files", 0, name) from None
    except UnicodeDecodeError as error:
        raise _failure("file-unreadable", f"it is not UTF-8 text: {error}", "export it again", 0, name) from error


def _failure(code: str, message: str, fix: str = "", line: int = 0, file: str = CODE_FILE) -> ExportError:
    return ExportError([Finding(code, message, fix, file, line)])
