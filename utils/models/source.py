"""A model's files on this machine, pinned: where they came from, at which revision, with which bytes. No torch.

Knows no network: it checks the two published files, and keeps a copy of them, whole or not at all.
"""

import errno
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from utils.models.findings import ExportError, Finding
from utils.runtime.files import fsync_file, fsync_folder, sha256_file, write_atomic

CODE_FILE = "model.py"
CONFIG_FILE = "config.json"
PUBLISHED = (CODE_FILE, CONFIG_FILE)
MAX_BYTES = 5_000_000  # of one published file: the longest real ones have some 100 kB
NAMES_SHOWN = 20
SECRET = re.compile(r"gh[a-z]_\w+|github_pat_\w+|hf_\w{8,}|(?<=//)[^/\s@]+@")


class SourceError(ValueError):
    """A model that cannot be had: what was asked for, why not, what to do."""


@dataclass(frozen=True)
class ModelSource:
    """What a name for a model led to."""

    kind: str
    """builder: a folder with model.py and config.json as published; hub: a transformers folder without code."""
    ref: str
    """What the person wrote."""
    folder: Path
    """Where the files are, byte for byte as published."""
    revision: str = ""
    """The commit of a gist or Hub repository; empty for what came from this machine."""
    owner: str = ""
    """Who published it; empty for what came from this machine."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Of each file, by name."""

    @property
    def code_sha256(self) -> str:
        """sha256 of model.py, which is what a person trusts or not; empty where there is no code."""
        return self.sha256.get(CODE_FILE, "")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the folder, ready for JSON: what meta.json keeps."""
        values = asdict(self)
        del values["folder"]
        return values


def masked(text: object) -> str:
    """The text without what looks like a token, or a name and password in a URL."""
    return SECRET.sub("***", str(text))


def shown(text: object) -> str:
    """Foreign text, fit for a message: masked, on one line, not long."""
    clean = "".join(c if c.isprintable() else "?" for c in masked(text))
    return clean if len(clean) <= 200 else clean[:199] + "…"


def listing(names: Any) -> str:
    """File names for a message."""
    names = sorted(map(str, names))
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return (", ".join(map(shown, names[:NAMES_SHOWN])) or "nothing") + more


# --- the check ---------------------------------------------------------------------------------------------------


def missing_files(names: Any) -> list[Finding]:
    """One finding for each published file that is not among `names`. The letters' case counts."""
    names, found = set(names), []
    for name in PUBLISHED:
        near = sorted(other for other in names if other.lower() == name)
        if name not in names and near:
            message = f"there is {shown(near[0])}, which differs from {name} in upper and lower case"
            found.append(Finding("wrong-case", message, f"rename it to {name}", file=name))
        elif name not in names:
            message = f"missing: a published model is {CODE_FILE} and {CONFIG_FILE}; there is {listing(names)}"
            found.append(Finding("missing-file", message, "export the model again, or add the file", file=name))
    return found


def check_bytes(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The config, once all that can be seen without running the code is in order.

    Args:
        files: the bytes of the published files, by name; others are not looked at.

    Raises ExportError with every finding: a file is missing, empty, too long or not UTF-8, config.json is not a JSON
    object, or model.py is not Python.
    """
    findings = missing_files(files)
    config: dict[str, Any] = {}
    for name in PUBLISHED:
        if name not in files:
            continue
        data = files[name]
        if plain := _not_text(name, data):
            findings.append(plain)
        elif name == CODE_FILE:
            findings += _not_python(data)
        else:
            config, wrong = _read_config(data)
            findings += wrong
    if findings:
        raise ExportError(findings)
    return config


def check_files(folder: Path) -> dict[str, Any]:
    """`check_bytes` of a folder. Raises as that does, and SourceError for what is no folder or cannot be read."""
    return check_bytes(read_published(folder))


def read_published(folder: Path) -> dict[str, bytes]:
    """The bytes of the published files of a folder. Raises ExportError if one is missing, SourceError if unreadable."""
    folder = Path(folder)
    try:
        names = [path.name for path in folder.iterdir() if path.is_file()]
        if lacking := missing_files(names):
            raise ExportError(lacking)
        files = {}
        for name in PUBLISHED:
            with (folder / name).open("rb") as file:
                files[name] = file.read(MAX_BYTES + 1)  # one more: enough to see that it is too long
    except OSError as error:
        raise SourceError(f"{shown(folder)} cannot be read: {error.strerror}") from None
    return files


def _not_text(name: str, data: bytes) -> Finding | None:
    if len(data) > MAX_BYTES:
        return Finding("too-large", f"longer than {MAX_BYTES:,} bytes", "weights and data do not belong here", name)
    if not data.strip():
        return Finding("empty-file", "empty", "export the model again", name)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start:,}"
        return Finding("not-utf8", message, "save it as UTF-8", name, line)
    return None


def _read_config(data: bytes) -> tuple[dict[str, Any], list[Finding]]:
    fix = "correct it, or export the model again"
    text = data.decode("utf-8-sig")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        line = (text.splitlines() or [""])[min(error.lineno, len(text.splitlines())) - 1]
        message = f"not JSON: {error.msg}, line {error.lineno} column {error.colno}{_pointed(line, error.colno)}"
        return {}, [Finding("config-not-json", message, fix, CONFIG_FILE, error.lineno)]
    except (RecursionError, ValueError) as error:  # too deep; a number of too many digits
        return {}, [Finding("config-not-json", f"JSON that cannot be read: {shown(error)}", fix, CONFIG_FILE)]
    if not isinstance(config, dict):
        message = f"holds a {type(config).__name__}, but has to be a JSON object {{...}}"
        return {}, [Finding("config-not-object", message, fix, CONFIG_FILE)]
    return config, []


def _not_python(data: bytes) -> list[Finding]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string is no reason to bother anyone
            compile(data, CODE_FILE, "exec", dont_inherit=True)
    except SyntaxError as error:
        message = f"not Python: {shown(error.msg)}{_pointed(error.text or '', error.offset or 1)}"
        return [Finding("syntax-error", message, "correct it, or export the model again", line=error.lineno or 0)]
    except (ValueError, RecursionError, MemoryError) as error:  # NUL bytes; nested too deeply for the parser
        return [Finding("syntax-error", f"not Python: {shown(error) or type(error).__name__}", "export it again")]
    return []


def _pointed(line: str, column: int) -> str:
    """The line with a caret under its column (from 1); of a long one the part around it."""
    line, at = line.rstrip("\r\n").replace("\t", " "), max(column - 1, 0)
    start = max(0, at - 80)
    line = "".join(c if c.isprintable() else "?" for c in line[start : start + 120])
    return f"\n    {line}\n    {' ' * (at - start)}^\n" if line.strip() else ""


# --- the kept copy -----------------------------------------------------------------------------------------------


def keep(cache: Path, name: str, files: Mapping[str, bytes], **about: str) -> ModelSource:
    """A copy of the published files as the folder `cache/models/name`: whole or not there, whoever else does the same.

    `about` holds the fields of ModelSource. It and the files' hashes lie beside the folder in `name.json`, so that
    `kept` can tell later that no byte has changed. Raises SourceError if the cache cannot be written.
    """
    folder = Path(cache) / "models" / name
    hashes = {file: sha256(data).hexdigest() for file, data in sorted(files.items())}
    about = {key: masked(value) for key, value in about.items()}
    try:
        _place(folder, files, hashes)
        sidecar = json.dumps({**about, "sha256": hashes}, indent=2)
        write_atomic(folder.with_name(f"{name}.json"), sidecar + "\n")
    except OSError as error:
        raise SourceError(
            f"the cache {cache} cannot be written: {error.strerror}. Make room, or set TBT_CACHE to another folder."
        ) from error
    return ModelSource(folder=folder, sha256=hashes, **about)


def _place(folder: Path, files: Mapping[str, bytes], hashes: Mapping[str, str]) -> None:
    """Write the files into a folder beside it, and give that the name in one instant."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    fresh.mkdir()
    try:
        for file, data in files.items():
            (fresh / file).write_bytes(data)
            fsync_file(fresh / file)
        fsync_folder(fresh)
        while not _intact(folder, hashes):
            try:
                os.rename(fresh, folder)
            except OSError as error:  # something else lies there: from before, or from a process a moment ahead
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                if not _intact(folder, hashes):
                    _take_away(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def kept(cache: Path, name: str, ref: str, revision: str) -> ModelSource | None:
    """The copy that `keep` made, if it is of this revision and still has the bytes it was made with."""
    folder = Path(cache) / "models" / name
    try:
        about = json.loads(folder.with_name(f"{name}.json").read_text(encoding="utf-8"))
        if set(about["sha256"]) != set(PUBLISHED) or about["revision"] != revision:
            return None
        source = ModelSource(**{**about, "ref": masked(ref), "folder": folder})
    except (OSError, ValueError, TypeError, KeyError):  # never made, or damaged: then it is made again
        return None
    return source if _intact(folder, source.sha256) else None


def _intact(folder: Path, hashes: Mapping[str, str]) -> bool:
    """Whether the folder holds these files with these hashes. What else lies there, such as compiled code that Python
    would run in the place of model.py, is thrown out."""
    if not folder.is_dir():
        return False
    try:
        for path in folder.iterdir():
            if path.name not in hashes:
                _take_away(path)
        return all(sha256_file(folder / name) == digest for name, digest in hashes.items())
    except OSError:
        return False


def _take_away(path: Path) -> None:
    """Remove a file or folder, which others may be doing too; its name is free at once."""
    aside = path.parent.with_name(f".{path.name}.old-{os.getpid()}-{secrets.token_hex(4)}")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink(missing_ok=True)
