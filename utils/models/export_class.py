"""From model.py and config.json to a built module: which class, with which arguments. Never calls `forward`."""

import ast
import dataclasses
import inspect
import itertools
import json
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.models.findings import ExportError, Finding
from utils.models.source import CODE_FILE, CONFIG_FILE
from utils.runtime.randomness import derive_seed

VOCABULARY = ("vocab_size", "n_vocab", "vocabulary_size", "num_tokens", "n_tokens", "ntoken", "num_embeddings")
LENGTH = (
    "block_size", "max_seq_len", "max_seq_length", "seq_len", "seq_length", "max_position_embeddings", "n_positions",
    "context_length", "max_length", "max_len", "max_sequence_length", "n_ctx", "context_size", "ctx_len",
)  # fmt: skip
ALIASES = (
    VOCABULARY,
    LENGTH,
    ("d_model", "n_embd", "hidden_size", "embed_dim", "embedding_dim", "model_dim", "emb_dim", "n_embed", "dim"),
    ("n_head", "nhead", "num_heads", "n_heads", "num_attention_heads", "heads"),
    ("n_kv_head", "n_kv_heads", "num_kv_heads", "num_key_value_heads"),
    ("n_layer", "num_layers", "n_layers", "num_hidden_layers", "depth", "layers", "num_blocks", "n_blocks"),
    (
        "d_ff",
        "dim_feedforward",
        "ffn_dim",
        "d_ffn",
        "intermediate_size",
        "ff_dim",
        "n_inner",
        "ffn_hidden",
        "hidden_dim",
    ),
    ("dropout", "dropout_rate", "dropout_prob", "p_dropout", "hidden_dropout_prob", "resid_pdrop"),
    ("num_experts", "n_experts", "n_expert", "num_local_experts"),
    ("top_k", "num_experts_per_tok", "experts_per_token"),
    ("num_classes", "n_classes", "num_labels", "n_labels"),
    ("pad_token_id", "padding_idx", "pad_idx", "pad_id"),
)
# An encoder-decoder may have two of what its config says once.
FALLBACKS = {
    "src_vocab_size": "vocab_size", "tgt_vocab_size": "vocab_size", "source_vocab_size": "vocab_size",
    "target_vocab_size": "vocab_size", "num_encoder_layers": "num_layers", "num_decoder_layers": "num_layers",
    "n_encoder_layers": "num_layers", "n_decoder_layers": "num_layers", "encoder_layers": "num_layers",
    "decoder_layers": "num_layers", "max_src_len": "max_seq_len", "max_tgt_len": "max_seq_len",
}  # fmt: skip
NESTS = ("model", "hyperparameters", "params", "model_config", "config")  # a later one wins over an earlier one
CONFIG_NAMES = ("config", "cfg", "conf", "args", "hparams", "hyperparameters", "model_config", "model_args", "params",
                "settings")  # fmt: skip
CLASS_KEYS = ("model_name", "class_name", "model_class", "architecture")
USUAL_CLASS = "CustomTransformer"  # the name the builder writes unless told another
_numbers = itertools.count()


class Settings(dict):
    """A config as strangers' constructors read one: `c.n_embd`, `c["n_embd"]`, `c.get("n_embd")`, by any usual name."""

    def __missing__(self, key: str) -> Any:
        other = alias_in(self, key)
        if other is None:
            raise KeyError(key)
        return self[other]

    def __getattr__(self, key: str) -> Any:
        other = None if key.startswith("__") else alias_in(self, key)
        if other is None:
            raise AttributeError(f"config has no {key}; it has {', '.join(self) or 'no keys'}")
        return self[other]

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's, by any usual name."""
        other = alias_in(self, key)
        return default if other is None else self[other]


def alias_in(values: Mapping[str, Any], name: str) -> str | None:
    """The key of `values` that means `name`: itself, or another usual word for the same; None without one."""
    if name in values:
        return name
    for group in ALIASES:
        if name in group:
            return next((other for other in group if other in values), None)
    return alias_in(values, FALLBACKS[name]) if name in FALLBACKS else None


def number_in(flat: Settings, names: tuple[str, ...]) -> int:
    """The config's word for the first of these names, under any usual name; 0 without one."""
    value = next((flat.get(name) for name in names if flat.get(name) is not None), 0)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def flatten(config: Mapping[str, Any]) -> Settings:
    """The settings of a config, wherever it keeps them: at its top, under `params` and the like, or in its nodes.

    The top wins over what is nested. Among the nodes of a graph the first to name a value wins: the embedding comes
    first, and a later node may use the same word for something of its own.
    """
    flat = Settings()
    nodes = config.get("nodes")
    for node in nodes if isinstance(nodes, list) else []:
        for place in (node, node.get("data") if isinstance(node, dict) else None):
            params = place.get("params") if isinstance(place, dict) else None
            for key, value in (params if isinstance(params, dict) else {}).items():
                flat.setdefault(key, value)
    for nest in NESTS:
        if isinstance(config.get(nest), dict):
            flat.update(flatten(config[nest]))
    flat.update({key: value for key, value in config.items() if key not in NESTS or not isinstance(value, dict)})
    flat.pop("nodes", None)
    if "transformers_version" in flat:
        flat.pop("max_length", None)  # there it says how much to generate
    return flat


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
        failure = _failure("syntax-error", f"it is not Python: {error.msg}", "export it again", line)
    except ModuleNotFoundError as error:
        package = (error.name or "?").split(".")[0]
        message = f"it imports {error.name}, which is not installed here"
        failure = _failure("missing-package", message, f"pip install {package}", line_of(error, str(path)))
    except (Exception, SystemExit) as error:  # a stranger's code: whatever it raises is the finding
        failure = _failure("import-fails", f"importing it raises {told(error)}", "", line_of(error, str(path)))
    else:
        return module
    del sys.modules[module.__name__]
    raise failure


def choose(module: types.ModuleType, config: Mapping[str, Any]) -> tuple[Callable[..., Any], str]:
    """The class (or `build_model`) that makes the model, and why it was chosen.

    What the config names comes first, then a function `build_model`, then the one public class that no other is made
    from. Raises ExportError where the named class does not exist or more than one is left, with line numbers.
    """
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
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
    build = getattr(module, "build_model", None)
    if inspect.isfunction(build) and build.__module__ == module.__name__:
        return build, "function build_model"

    reached = _reached(tree)
    top = [name for name in classes if not name.startswith("_")]
    top = [name for name in top if not any(name in reached[other] for other in classes if other != name)]
    if len(top) > 1 and USUAL_CLASS in top:
        top = [USUAL_CLASS]
    if len(top) > 1:  # a loss or a metric beside the model looks nothing up
        top = [name for name in top if "Embedding" in reached[name]] or top
    if len(top) == 1:
        return classes[top[0]], f"class {top[0]}: no other class of model.py is made from it"
    if not classes:
        raise _failure("class-missing", "it defines no nn.Module", "export the model's class")
    listed = ", ".join(f"{name} (line {lines.get(name, 0)})" for name in top or classes)
    raise _failure("class-ambiguous", f"it could be any of {listed}", f"name one in model_name of {CONFIG_FILE}")


def build_export(folder: Path, seed: int = 0) -> tuple[nn.Module, dict[str, Any], list[str]]:
    """The module of an export, on the CPU, its config, and notes on what was decided.

    Its weights are a pure function of the files and the seed; torch's global random state is as it was.
    Raises ExportError.
    """
    folder = Path(folder)
    config = read_config(folder)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        module = import_code(folder)
        maker, why = choose(module, config)
        path = str(module.__file__)
        keywords = arguments(maker, flatten(config), module)
        # Only now, for the file may set a seed of its own. torch.manual_seed would also reseed the GPUs.
        torch.default_generator.manual_seed(derive_seed(seed, "init"))
        try:
            model = maker(**keywords)
        except ExportError:
            raise
        except (Exception, SystemExit) as error:  # a stranger's code: whatever it raises is the finding
            given = ", ".join(f"{key}={_brief(value)}" for key, value in keywords.items())
            message = f"{maker.__name__}({given}) raises {told(error)}"
            fix = f"{CONFIG_FILE} has {', '.join(flatten(config)) or 'no keys'}"
            raise _failure("constructor-fails", message, fix, line_of(error, path) or _first_line(maker)) from error
    if not isinstance(model, nn.Module):
        message = f"{maker.__name__} returns {type(model).__name__}, not an nn.Module"
        raise _failure("constructor-fails", message, "return the model", _first_line(maker))
    return model, config, [why]


def arguments(maker: Callable[..., Any], flat: Settings, module: types.ModuleType) -> dict[str, Any]:
    """Keyword arguments for `maker`: those it names, from the config, by any usual word for them.

    Raises ExportError for a required one that the config does not have.
    """
    try:
        parameters = inspect.signature(maker).parameters.values()
    except ValueError:  # a class written in C
        return {}
    if [p.kind for p in parameters if p.name != "self"] == [inspect.Parameter.VAR_KEYWORD]:
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
        if key is not None and not dataclasses.is_dataclass(hints.get(p.name)):
            chosen[p.name] = flat[key]
        elif p.name in CONFIG_NAMES or dataclasses.is_dataclass(hints.get(p.name)):
            chosen[p.name] = _config_object(p, hints.get(p.name), flat, module)
        elif p.default is p.empty:
            keys = ", ".join(key for key in flat if isinstance(key, str)) or "no keys"
            message = f"{maker.__name__} needs {p.name}, which {CONFIG_FILE} does not have; it has {keys}"
            raise _failure("missing-argument", message, f"add {p.name} to {CONFIG_FILE}", _first_line(function))
    return chosen


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
            if isinstance(thing, type) and name.endswith("Config") and thing.__module__ == module.__name__
        ]  # fmt: skip
    kinds = [kind for kind in kinds if kind.__module__ not in ("builtins", "types", "typing")]
    if not kinds:
        return flat
    kind = kinds[0]
    try:
        return kind(**arguments(kind, flat, module))
    except ExportError:
        raise
    except Exception as error:  # a stranger's code: whatever it raises is the finding
        message = f"{kind.__name__} raises {told(error)}"
        line = line_of(error, str(module.__file__)) or _first_line(kind)
        raise _failure("constructor-fails", message, f"look at {CONFIG_FILE}", line) from error


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
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


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
