"""A tokenizer somebody else made: a folder, a tokenizer.json or a Hub repository, pinned. Runs none of its code."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from utils.data.tokenizing.tokenizer import (
    CONFIG_FILE,
    KINDS,
    ROLES_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    Tokenizer,
    load_tokenizer,
)
from utils.runtime.files import cache_dir, sha256_file, sha256_json

OWN = "model"  # data.tokenizer=model: the one that came with the model
WORDS = ("auto", OWN, *KINDS)  # what data.tokenizer may be besides a name or a folder
OLDER = ("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
BESIDE = (CONFIG_FILE, ROLES_FILE, TEMPLATE_FILE, "added_tokens.json", "chat_template.json", *OLDER)
REPO = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 20.0  # seconds for the Hub's answer


def fetch_tokenizer(name: str, revision: str = "", own: Path | None = None) -> Path:
    """The folder on this machine that holds the tokenizer.json of the tokenizer `name`.

    Arguments:
        name: a folder, a tokenizer.json, owner/name of the Hub, or "model" for the one in `own`.
        revision: of the repository; "" for the newest.
        own: folder of the files that came with the model.

    What exists here goes first. Where there are only files of an older kind (vocab.txt, spiece.model and the like),
    transformers makes a tokenizer.json of them. Raises ValueError with what is wrong and what to do.
    """
    if name == OWN:
        if own is None:
            raise ValueError("data.tokenizer=model is for a model that comes with a tokenizer, and this one does not")
        return _usable(Path(own), f"the model's folder {own}")
    path = Path(name).expanduser()
    if path.exists():
        if revision:
            raise ValueError(
                f"data.tokenizer={name} is on this machine and has no revisions: leave data.tokenizer_revision out"
            )
        return _usable(path, f"data.tokenizer={name}") if path.is_dir() else _file(path, name)
    if not _is_repo(name):
        raise unknown(name)
    repo = name.removeprefix("hf://")
    return _usable(_Hub(repo).fetch(revision), f"data.tokenizer={name}")


def pin_tokenizer(name: str, revision: str = "") -> str:
    """The commit of the Hub repository `name` at `revision` ("" = the newest); "" for what is on no Hub.

    Raises ValueError as `fetch_tokenizer` does.
    """
    if name in WORDS or Path(name).expanduser().exists():
        return ""
    if not _is_repo(name):
        raise unknown(name)
    return revision if COMMIT.fullmatch(revision) else _Hub(name.removeprefix("hf://")).commit(revision)


def load_pretrained(name: str, revision: str = "", own: Path | None = None) -> Tokenizer:
    """The tokenizer that `fetch_tokenizer` finds; its `origin` says where it is from."""
    commit = pin_tokenizer(name, revision)
    tokenizer = load_tokenizer(fetch_tokenizer(name, commit, own))
    if not tokenizer.origin:
        tokenizer.origin = {"kind": "pretrained", "name": name} | ({"revision": commit} if commit else {})
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's files, be they of an older kind."""
    return any((folder / name).is_file() for name in (TOKENIZER_FILE, *OLDER))


def unknown(name: str) -> ValueError:
    """What is said of a data.tokenizer that is nothing."""
    near = get_close_matches(name, WORDS, 1, 0.5)
    meant = f" Did you mean {near[0]}?" if near else ""
    return ValueError(
        f"data.tokenizer={name} is neither one of {', '.join(WORDS)}, nor a folder here with a {TOKENIZER_FILE}, nor "
        f"owner/name of the Hub.{meant}"
    )


def _is_repo(name: str) -> bool:
    return REPO.fullmatch(name.removeprefix("hf://")) is not None


# --- on this machine ---------------------------------------------------------------------------------------------


def _usable(folder: Path, said: str) -> Path:
    """The folder itself if it has a tokenizer.json, or one where its older files were made into one."""
    if (folder / TOKENIZER_FILE).is_file():
        return folder
    older = [name for name in OLDER if (folder / name).is_file()]
    if not older:
        raise ValueError(f"{said} has no {TOKENIZER_FILE}, nor a vocabulary to make one from ({', '.join(OLDER)})")
    names = [*older, *(name for name in (*BESIDE, "config.json") if (folder / name).is_file())]
    digest = sha256_json({name: sha256_file(folder / name) for name in names})
    made = cache_dir() / "tokenizers" / f"converted-{digest[:24]}"
    if not (made / TOKENIZER_FILE).is_file():
        _keep(made, lambda building: _convert(folder, building, said, older))
    return made


def _file(path: Path, name: str) -> Path:
    if path.name == TOKENIZER_FILE:
        return path.parent
    if path.suffix != ".json":
        raise ValueError(f"data.tokenizer={name} is no {TOKENIZER_FILE}: name that file, or the folder it is in")
    kept = cache_dir() / "tokenizers" / f"file-{sha256_file(path)[:24]}"
    if not (kept / TOKENIZER_FILE).is_file():
        _keep(kept, lambda building: shutil.copyfile(path, building / TOKENIZER_FILE))
    return kept


def _keep(folder: Path, write: Any) -> None:
    """Let `write` fill a folder, and give it its name once it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    try:
        write(building)
        if not folder.exists():
            os.rename(building, folder)
    except OSError:
        if not folder.exists():  # or another process was faster
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _copy(files: Path, to: Path) -> None:
    for path in files.iterdir() if files.is_dir() else ():  # nothing of a tokenizer's was there
        if path.name in (TOKENIZER_FILE, "config.json", *BESIDE):
            shutil.copyfile(path, to / path.name)


def _convert(folder: Path, to: Path, said: str, older: list[str]) -> None:
    """Have transformers read older files, and save what it made of them."""
    have = f"{said} has no {TOKENIZER_FILE}, only {', '.join(older)}"
    try:
        from transformers import AutoTokenizer, logging
    except ImportError:
        raise ValueError(f"{have}, which transformers can convert: pip install transformers") from None
    level = logging.get_verbosity()
    logging.set_verbosity(50)  # CRITICAL
    try:
        made = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)
        if len(made) < len(made.all_special_tokens) + 2:  # its class looked for another file, and found none
            raise ValueError(
                "it finds no vocabulary in them; does tokenizer_config.json name the right tokenizer_class?"
            )
        made.save_pretrained(to)
    except Exception as error:  # transformers raises many kinds for a bad folder, some without a common base
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        more = " (a .model file needs: pip install sentencepiece protobuf)" if any("model" in n for n in older) else ""
        raise ValueError(f"{have}, and transformers cannot convert it: {first}{more}") from None
    finally:
        logging.set_verbosity(level)
    if not (to / TOKENIZER_FILE).is_file():
        raise ValueError(f"{have}, and transformers has no fast form of it: choose another tokenizer")


# --- the Hub -----------------------------------------------------------------------------------------------------


class _Hub:
    """One repository, through huggingface_hub, which keeps its own cache and knows the user's token."""

    def __init__(self, repo: str) -> None:
        try:
            import huggingface_hub
        except ImportError:
            raise ValueError(
                f"data.tokenizer={repo} is on the Hub and huggingface_hub is not installed: pip install huggingface_hub"
            ) from None
        self.library, self.repo = huggingface_hub, repo
        self.endpoint = os.environ.get("HF_ENDPOINT") or None

    def commit(self, revision: str) -> str:
        """The commit a branch, a tag or "" (the newest) means now."""
        api = self.library.HfApi(endpoint=self.endpoint)
        try:
            return str(api.model_info(self.repo, revision=revision or None, timeout=TIMEOUT).sha)
        except Exception as error:  # its transport, and so what it raises without a network, differs between versions
            raise self._problem(error, revision) from None

    def fetch(self, revision: str) -> Path:
        """A folder with the tokenizer's files at this revision; of a commit fetched before, without the network."""
        commit = revision if COMMIT.fullmatch(revision) else ""
        if not commit or not self._kept(commit).is_dir():
            commit = commit or self.commit(revision)
            files = self._download(commit, (TOKENIZER_FILE, *BESIDE), revision)
            if not (files / TOKENIZER_FILE).is_file():  # the model's own config says which class its files belong to
                files = self._download(commit, (*BESIDE, "config.json"), revision)
            _keep(self._kept(commit), lambda building: _copy(files, building))
        return self._kept(commit)

    def _kept(self, commit: str) -> Path:
        return cache_dir() / "tokenizers" / f"hub-{self.repo.replace('/', '--')}-{commit}"

    def _download(self, commit: str, names: Iterable[str], revision: str) -> Path:
        said = self.library.utils.logging
        level = said.get_verbosity()
        said.set_verbosity(said.CRITICAL)  # that no file matched is said below, in the user's words
        try:
            folder = self.library.snapshot_download(
                self.repo, revision=commit, endpoint=self.endpoint, allow_patterns=list(names)
            )
        except Exception as error:  # see `commit`
            raise self._problem(error, revision) from None
        finally:
            said.set_verbosity(level)
        return Path(folder)

    def _problem(self, error: Exception, revision: str) -> ValueError:
        """What went wrong, in words. The library's own text is left out: it is long and names what was sent."""
        errors = self.library.errors
        status = getattr(getattr(error, "response", None), "status_code", None)
        at = f" at revision {revision}" if revision else ""
        if isinstance(error, errors.GatedRepoError):
            said = "its owner asks for consent first: give it on its page, and set HF_TOKEN"
        elif isinstance(error, errors.RevisionNotFoundError):
            said = "there is no such revision: data.tokenizer_revision is a commit, branch or tag"
        elif isinstance(error, errors.RepositoryNotFoundError):
            said = "no such repository on the Hub, nor a folder here. If it is private, set HF_TOKEN"
        elif isinstance(error, errors.HFValidationError):
            said = "no name that a repository can have: it is owner/name"
        elif status in (401, 403):
            said = f"refused ({status}): is HF_TOKEN valid, and may it read this?"
        elif status == 429:
            said = "the Hub's rate limit is used up (429): wait some minutes, or set HF_TOKEN, which raises the limit"
        elif status is not None:
            said = f"the Hub answered {status}: try again later"
        else:
            said = (
                f"the Hub cannot be reached ({type(error).__name__}), and this revision is not here from before. Is "
                "there a network? A folder with a tokenizer.json works without one"
            )
        return ValueError(f"data.tokenizer={self.repo}{at}: {said}")
