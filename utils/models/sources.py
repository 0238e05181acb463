"""What a name for a model means: a folder, a zip, a gist or a Hub repository; copied here and pinned. No torch.

Runs nothing of what it finds and reads no pickled weights.
"""

import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from utils.models.findings import ExportError
from utils.models.gist import ID, PAGES, fetch_gist, is_gist
from utils.models.source import (
    CONFIG_FILE,
    MAX_BYTES,
    PUBLISHED,
    ModelSource,
    SourceError,
    check_bytes,
    check_files,
    keep,
    kept,
    listing,
    masked,
    missing_files,
    read_published,
    shown,
)
from utils.runtime.files import cache_dir, sha256_file

__all__ = ["SourceError", "check_files", "fetch_source"]

TIMEOUT = 20.0  # seconds for the Hub's answer
MAX_ZIP, MAX_MEMBERS, MAX_RATIO = 20_000_000, 1000, 100
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")  # the names that transformers loads by itself
PARTS = ("model.safetensors", "model-?????-of-?????.safetensors")  # the same for the Hub's library
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
BESIDE = {
    CONFIG_FILE, INDEX, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.json", "chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
}  # fmt: skip
REPO = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
KINDS = (
    "a folder or .zip with model.py and config.json, a transformers folder (config.json and *.safetensors), a gist "
    "(id or URL), or a Hub repository (owner/name, hf://owner/name, each with @revision if it is to be pinned)"
)


def fetch_source(ref: str, revision: str = "") -> ModelSource:
    """The files that `ref` names, on this machine: what is looked at is what runs.

    Args:
        ref: a folder, a .zip, a gist (id or URL) or a Hub repository (owner/name). What exists here goes first.
        revision: of a gist or repository; "" for the one in `ref`, or else the latest.

    Raises SourceError if there is no such thing, if it could be two things, or if it cannot be had; ExportError if it
    is there but is no model.
    """
    ref, revision = ref.strip(), revision.strip()
    if not ref:
        raise SourceError(f"no model is named. Known are {KINDS}.")
    path = _path(ref)
    if path is not None and not re.match(r"[a-z]+://", ref):
        if revision:
            raise SourceError(f"{shown(ref)} is on this machine and has no revisions: leave {shown(revision)} out")
        if ID.fullmatch(ref.lower()):
            raise SourceError(
                f"{ref} is ambiguous: a folder here has the name of a gist. Write ./{ref} or https://{PAGES}/{ref}."
            )
        return _folder(ref, path) if path.is_dir() else _file(ref, path)
    if is_gist(ref):
        return fetch_gist(ref, revision)
    if match := REPO.fullmatch(_repo_name(ref)):
        pinned = match["revision"] or ""
        if revision and pinned and revision != pinned:
            raise SourceError(f"two revisions: {shown(pinned)} in {shown(ref)} and {shown(revision)} beside it")
        if ID.fullmatch(match["repo"].split("/")[1].lower()) and not ref.startswith("hf://"):
            raise SourceError(
                f"{shown(ref)} is ambiguous: write hf://{match[0]} for a Hub repository of this name, or "
                f"https://{PAGES}/{match[0]} for the gist."
            )
        return _Hub(ref, match["repo"]).fetch(revision or pinned)
    raise SourceError(
        f"{shown(ref)}: nothing of that name here, and no gist's or repository's name. Known are {KINDS}."
    )


def _path(ref: str) -> Path | None:
    try:
        path = Path(ref).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL inside, an unknown ~user: no path
        return None


def _repo_name(ref: str) -> str:
    """owner/name[@revision] of hf://owner/name or of the URL of a page; anything else as it is."""
    url = urlsplit(ref.removeprefix("hf://")) if ref.startswith(("hf://", "http")) else None
    if url is None or ref.startswith("hf://"):
        return ref.removeprefix("hf://").rstrip("/")
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    parts = url.path.strip("/").split("/")
    if url.hostname != hub or len(parts) < 2:
        return ref
    return "/".join(parts[:2]) + (f"@{parts[3]}" if len(parts) == 4 and parts[2] == "tree" else "")


# --- what is on this machine -------------------------------------------------------------------------------------


def _builder(ref: str, files: dict[str, bytes]) -> ModelSource:
    """The published files, checked and copied under a name made of their bytes."""
    check_bytes(files)
    digest = sha256(b"".join(sha256(files[name]).digest() for name in PUBLISHED)).hexdigest()
    name = f"files-{digest[:24]}"
    return kept(cache_dir(), name, ref, "") or keep(
        cache_dir(), name, files, kind="builder", ref=ref, revision="", owner=""
    )


def _folder(ref: str, path: Path) -> ModelSource:
    try:
        names = {entry.name for entry in path.iterdir() if entry.is_file()}
        if _kind(ref, names, lambda: (path / CONFIG_FILE).read_bytes()) == "builder":
            return _builder(ref, read_published(path))
        return _checkpoint(ref, path, _used(names))
    except OSError as error:
        raise SourceError(f"{shown(ref)} cannot be read: {error.strerror}") from None


def _kind(ref: str, names: set[str], read_config: Callable[[], bytes]) -> str:
    """builder or hub, by what lies there. Raises SourceError or ExportError for both at once and for neither."""
    weights = {name for name in names if name.endswith(".safetensors")}
    pickled = {name for name in names if name.endswith(PICKLED)}
    transformers = CONFIG_FILE in names and (weights or pickled) and _is_transformers(read_config())
    if "model.py" in names and CONFIG_FILE in names:
        if transformers and weights:
            raise SourceError(
                f"{shown(ref)} is ambiguous: it holds a model.py, and also a transformers config.json with weights. "
                "Copy model.py and config.json, or config.json and *.safetensors, into a folder of their own."
            )
        return "builder"
    if transformers and weights:
        return "hub"
    if transformers:
        raise SourceError(
            f"{shown(ref)} has its weights in {listing(pickled)} only. Pickled weights can run code when they are "
            "read, so they are not read. Convert them where you trust them: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)."
        )
    if weights and "model.py" not in names:
        lacks = "has a config.json that names neither architectures nor model_type"
        lacks = lacks if CONFIG_FILE in names else "has weights but no config.json"
        raise SourceError(f"{shown(ref)} {lacks}: a transformers folder has both. Known are {KINDS}.")
    raise ExportError(missing_files(names))


def _is_transformers(data: bytes) -> bool:
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):  # whoever reads it for its content says what is wrong with it
        return False
    return isinstance(config, dict) and ("architectures" in config or "model_type" in config)


def _used(names: Iterable[str]) -> list[str]:
    """The files of a transformers folder that are read: config, tokenizer and safetensors. Code and pickles are not."""
    weights = {name for name in names if name.endswith(".safetensors")}
    named = {name for name in weights if WEIGHTS.fullmatch(name)}
    return sorted((named or weights) | (BESIDE & set(names)))


def _checkpoint(ref: str, folder: Path, names: list[str], revision: str = "", owner: str = "") -> ModelSource:
    """A transformers folder as it lies there, with its hashes. Raises SourceError if a part of it is missing."""
    if INDEX in names:
        try:
            parts = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise SourceError(f"{shown(ref)}: {INDEX} is damaged. Download the folder again.") from None
        if lacking := parts - set(names):
            raise SourceError(f"{shown(ref)} lacks {listing(lacking)}, which {INDEX} names. Download the folder again.")
    hashes = {name: sha256_file(folder / name) for name in names}
    return ModelSource("hub", masked(ref), folder, revision, owner, hashes)


# --- zip ---------------------------------------------------------------------------------------------------------


def _file(ref: str, path: Path) -> ModelSource:
    try:
        if not path.is_file() or not zipfile.is_zipfile(path):
            raise SourceError(f"{shown(ref)} is no folder and no zip. Known are {KINDS}.")
        if path.stat().st_size > MAX_ZIP:
            raise SourceError(f"{shown(ref)} has {path.stat().st_size:,} bytes; a model's zip has at most {MAX_ZIP:,}.")
        with zipfile.ZipFile(path) as archive:
            return _builder(ref, _unzip(ref, archive))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise SourceError(f"{shown(ref)} is a damaged or unknown kind of zip: {shown(error)}. Make it again.") from None
    except OSError as error:
        raise SourceError(f"{shown(ref)} cannot be read: {error.strerror}") from None


def _unzip(ref: str, archive: zipfile.ZipFile) -> dict[str, bytes]:
    """The published files, out of the top of the zip or of its one folder that has them. Nothing is written."""
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise SourceError(f"{shown(ref)} holds {len(members):,} files; a model's zip has at most {MAX_MEMBERS:,}.")
    if sum(member.file_size for member in members) > MAX_ZIP:
        raise SourceError(f"{shown(ref)} unpacks to more than {MAX_ZIP:,} bytes; a model is smaller.")
    found: dict[str, dict[str, zipfile.ZipInfo]] = {}  # by folder, by name
    for member in members:
        if wrong := _unsafe(member):
            raise SourceError(f"{shown(ref)} is refused: {shown(member.orig_filename)} {wrong}. Zip the files anew.")
        *folders, name = member.filename.split("/")
        if name and len(folders) <= 1 and folders != ["__MACOSX"]:
            inside = found.setdefault("/".join(folders), {})
            if name in inside:
                raise SourceError(f"{shown(ref)} is refused: it holds {shown(member.filename)} twice.")
            inside[name] = member
    models = [inside for inside in found.values() if set(PUBLISHED) <= set(inside)]
    if len(models) > 1:
        raise SourceError(f"{shown(ref)} is ambiguous: {len(models)} folders in it hold a model. Zip one alone.")
    if not models:
        only = next(iter(found.values())) if len(found) == 1 else found.get("", {})
        raise ExportError(missing_files(only))
    files = {}
    for name in PUBLISHED:
        with archive.open(models[0][name]) as file:
            files[name] = file.read(MAX_BYTES + 1)
    return files


def _unsafe(member: zipfile.ZipInfo) -> str:
    """Why a member has no place in a zip of two text files; "" if it may be there."""
    name = member.orig_filename  # as written: `filename` is already repaired, and cut at a NUL
    if "\\" in name or "\0" in name or name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        return "leads out of the zip, or could"
    mode = stat.S_IFMT(member.external_attr >> 16)
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if member.flag_bits & 0x1:
        return "is encrypted"
    if member.file_size > MAX_RATIO * max(member.compress_size, 1):
        return f"is packed more than {MAX_RATIO}:1"
    return ""


# --- the Hub -----------------------------------------------------------------------------------------------------


class _Hub:
    """One repository of the Hub, through huggingface_hub, which keeps its own cache and knows the user's token."""

    def __init__(self, ref: str, repo: str) -> None:
        try:
            import huggingface_hub
        except ImportError:
            raise SourceError(
                f"{shown(ref)} is on the Hub, and huggingface_hub is not installed: pip install huggingface_hub"
            ) from None
        self.library, self.ref, self.repo = huggingface_hub, ref, repo
        self.endpoint = os.environ.get("HF_ENDPOINT") or None

    def fetch(self, revision: str) -> ModelSource:
        """The repository at `revision` ("" for the latest), pinned to its commit; of a commit kept here, offline."""
        if COMMIT.fullmatch(revision) and (source := kept(cache_dir(), self._name(revision), self.ref, revision)):
            return source
        commit, hashes = self._files(revision)
        kind = _kind(self.ref, set(hashes), lambda: (self._download(commit, [CONFIG_FILE]) / CONFIG_FILE).read_bytes())
        owner = self.repo.split("/")[0]
        if kind == "builder":
            files = read_published(self._download(commit, PUBLISHED))
            check_bytes(files)
            return keep(cache_dir(), self._name(commit), files, kind=kind, ref=self.ref, revision=commit, owner=owner)
        names = _used(hashes)
        folder = self._download(commit, names)
        source = _checkpoint(self.ref, folder, names, commit, owner)
        wrong = [name for name in names if hashes[name] not in ("", source.sha256[name])]
        if wrong:
            raise SourceError(
                f"{shown(self.ref)}: {listing(wrong)} is damaged. Delete {shown(folder)} and fetch it again."
            )
        return source

    def _name(self, commit: str) -> str:
        return f"hub-{self.repo.replace('/', '--')}-{commit[:12]}"

    def _files(self, revision: str) -> tuple[str, dict[str, str]]:
        """The commit, and its top-level files with the sha256 that the Hub promises ("" where it promises none)."""
        api = self.library.HfApi(endpoint=self.endpoint)
        try:
            info = api.model_info(self.repo, revision=revision or None, files_metadata=True, timeout=TIMEOUT)
        except Exception as error:  # its transport, and so what it raises without a network, differs between versions
            status = _status(error)
            if COMMIT.fullmatch(revision) and (status is None or status >= 500):
                folder = self._download(revision, (*BESIDE, *PARTS), offline=True)
                return revision, {path.name: "" for path in folder.iterdir() if path.is_file()}
            raise self._problem(error, revision) from None
        files = {file.rfilename: getattr(file.lfs, "sha256", None) or "" for file in info.siblings or ()}
        return str(info.sha), {name: digest for name, digest in files.items() if "/" not in name}

    def _download(self, commit: str, names: Iterable[str], offline: bool = False) -> Path:
        """The folder with these files (`?` is any letter) of the commit; offline with what is here already."""
        try:
            folder = self.library.snapshot_download(
                self.repo,
                revision=commit,
                endpoint=self.endpoint,
                allow_patterns=list(names),
                local_files_only=offline,
            )
        except Exception as error:  # see _files
            raise self._problem(error, commit) from None
        return Path(folder)

    def _problem(self, error: Exception, revision: str) -> SourceError:
        """What went wrong, in words. The library's own text is left out: it is long and names what was sent."""
        errors, status = self.library.errors, _status(error)
        at = f" at revision {shown(revision)}" if revision else ""
        if isinstance(error, errors.GatedRepoError):
            said = "its owner asks for consent first: give it on its page, and set HF_TOKEN."
        elif isinstance(error, errors.RevisionNotFoundError):
            said = "there is no such revision."
        elif isinstance(error, errors.RepositoryNotFoundError):
            said = "no such repository on the Hub, nor a folder here. If it is private, set HF_TOKEN."
        elif isinstance(error, errors.HFValidationError):
            said = "no name that a repository can have: it is owner/name."
        elif status in (401, 403):
            said = f"refused ({status}): is HF_TOKEN valid, and may it read this?"
        elif status == 429:
            said = "the Hub's rate limit is used up (429). Wait some minutes, or set HF_TOKEN, which raises the limit."
        elif status is not None:
            said = f"the Hub answered {status}. Try again later."
        else:
            said = (
                f"the Hub cannot be reached ({type(error).__name__}), and this revision is not here from before. "
                "Is there a network?"
            )
        return SourceError(f"{shown(self.repo)}{at}: {said}")


def _status(error: Exception) -> int | None:
    """The HTTP status of an answer; None where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)
