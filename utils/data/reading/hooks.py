"""The user's own function, given each document as a dict; knows nothing of where documents come from.

It runs with the rights of whoever starts the run: it is the user's own file, named in the user's own settings.
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from utils.data.documents import BadRow, Document
from utils.data.reading.columns import as_label, as_messages, as_text, said
from utils.runtime.files import sha256_file

KEYS = ("text", "target", "label", "messages")


def load_hook(setting: str) -> Callable[[Document], Document | None]:
    """What data.hook=file.py:function makes of a document: another one, the same, or None = left out.

    The function gets a dict with those of `text`, `target`, `label`, `messages` that are there, and returns a dict
    (changed: a key that is missing from it is gone), True (kept as it is), or None or False (left out).

    Raises FileNotFoundError or ValueError where there is no such function; what it makes raises ValueError naming the
    function and the document if the function fails or returns something else.
    """
    function = _function(setting)

    def change(document: Document) -> Document | None:
        try:
            returned = function(_as_dict(document))
        except Exception as error:
            at = _line(error, setting)
            raise ValueError(
                f"data.hook={setting} failed on {document.where}: {type(error).__name__}: {error}{at}"
            ) from error
        if returned is True:
            return document
        if returned is None or returned is False:
            return None
        return _changed(document, returned, setting)

    return change


def hook_key(setting: str) -> dict[str, str]:
    """What decides what a hook does, as far as it can be known: its file's bytes and its name."""
    path, name = _parts(setting)
    return {"sha256": sha256_file(path), "function": name}


def _parts(setting: str) -> tuple[Path, str]:
    file, _, name = setting.rpartition(":")
    path = Path(file).expanduser()
    if not file or not name:
        raise ValueError(f"data.hook={setting} is not file.py:function")
    if not path.is_file():
        raise FileNotFoundError(f"data.hook={setting}: there is no file {path} (looked in {Path.cwd()})")
    return path, name


def _function(setting: str) -> Callable[[dict[str, Any]], Any]:
    path, name = _parts(setting)
    module = _module(path, setting)
    function: Any = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and value.__module__ == module.__name__]
        raise ValueError(f"data.hook={setting}: {path} has no function {name}; it has {', '.join(own) or 'none'}")
    return cast(Callable[[dict[str, Any]], Any], function)


def _module(path: Path, setting: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"data_hook_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"data.hook={setting}: {path} is not Python: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses defined in it look themselves up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"data.hook={setting}: {path} line {error.lineno} is not Python: {error.msg}") from error
    except Exception as error:
        why = f"{type(error).__name__}: {error}{_line(error, setting)}"
        raise ValueError(f"data.hook={setting}: {path} cannot be imported: {why}") from error
    return module


def _line(error: BaseException, setting: str) -> str:
    """The last line of the hook's file that an error went through."""
    path, line = setting.rpartition(":")[0], 0
    trace = error.__traceback__
    while trace:
        if Path(trace.tb_frame.f_code.co_filename).name == Path(path).name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""


def _as_dict(document: Document) -> dict[str, Any]:
    """The document as a dict of its own: a hook may change it."""
    given: dict[str, Any] = {"text": document.text} if document.messages is None else {}
    if document.target is not None:
        given["target"] = document.target
    if document.label is not None:
        given["label"] = document.label
    if document.messages is not None:
        given["messages"] = [dict(message) for message in document.messages]
    return given


def _changed(document: Document, returned: Any, setting: str) -> Document:
    """The document with what a hook returned for it."""
    where = f"data.hook={setting} on {document.where}"
    if not isinstance(returned, dict):
        kinds = "a dict (the document, changed), True (keep it) or None or False (leave it out)"
        raise BadRow(where, f"returned {said(returned)}; it must return {kinds}")
    unknown = [str(key) for key in returned if key not in KEYS]
    if unknown:
        raise BadRow(where, f"returned a dict with {', '.join(unknown)}; it may have {', '.join(KEYS)}")
    has = {key: value for key, value in returned.items() if value is not None}
    try:
        if "messages" in has:
            text, messages = "", as_messages(has["messages"], "messages", where)
        else:
            text, messages = as_text(returned, "text", where), None
        target = as_text(has, "target", where) if "target" in has else None
        label = as_label(has, "label", where) if "label" in has else None
    except BadRow as bad:
        problem = bad.problem.replace("column ", "").split(": name another")[0].split(": mend")[0]
        raise BadRow(where, f"returned a dict whose {problem}") from None
    return replace(document, text=text, target=target, label=label, messages=messages)
