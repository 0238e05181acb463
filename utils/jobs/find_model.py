"""What a person calls a model, and where it is: a preset, a run, a checkpoint, a folder, a gist, a Hub repository."""

import os
from dataclasses import dataclass
from pathlib import Path

from utils.config.load import preset_names
from utils.models.source import CODE_FILE, PUBLISHED, ModelSource, SourceError
from utils.models.source_files import SOURCE
from utils.models.sources import fetch_source
from utils.runs.folder import RunFolder
from utils.runs.model_folder import is_model_folder, kind_of, model_folder
from utils.runtime.files import sha256_file


@dataclass(frozen=True)
class FoundModel:
    """A model on this machine, not yet opened."""

    name: str
    """What the person wrote."""
    kind: str
    """preset, folder (a model folder of ours), builder (an export) or hub (a transformers model)."""
    where: str
    """The preset's name, or the folder."""
    source: ModelSource | None = None
    """Where it came from, if from elsewhere."""

    @property
    def place(self) -> str:
        """The preset's name, or the folder as a process that starts elsewhere finds it."""
        return self.where if self.kind == "preset" else str(Path(self.where).resolve())

    @property
    def code(self) -> Path | None:
        """The model.py that runs when it is built, there or not; None where none does.

        By kind, not by which files lie there: a file can be hidden while it is looked for, and another laid beside it.
        """
        if self.kind == "builder":
            return Path(self.where) / CODE_FILE
        is_export = self.kind == "folder" and kind_of(Path(self.where)) == "builder"
        return Path(self.where) / SOURCE / CODE_FILE if is_export else None

    @property
    def sha256(self) -> str:
        """Of that code, which is what a person trusts or not; empty where there is none."""
        return sha256_file(self.code) if self.code else ""

    def settings(self) -> list[str]:
        """The `key=value` settings that make a run train it; none for a preset, which is settings itself."""
        if self.kind == "preset":
            return []
        revision = self.source.revision if self.source else ""
        words = {"kind": self.kind, "ref": self.name, "revision": revision}
        return [f"model.{key}={value}" for key, value in words.items() if value]

    @property
    def read(self) -> list[Path]:
        """What a process that builds it has to read: its folder, and what links in it may lead to.

        Raises ValueError for a link to any other file: it would open a file of yours to a stranger's code.
        """
        if self.kind == "preset":
            return []
        folder = Path(self.where).resolve()
        return [folder, *{path.resolve() for path in links(folder)}]


def links(folder: Path) -> list[Path]:
    """The links to files in a folder: to the Hub's store beside it, or to weights. Raises ValueError for others."""
    return [
        path for place, _, names in os.walk(folder) for name in names if _is_link(path := Path(place, name), folder)
    ]


def _is_link(path: Path, folder: Path) -> bool:
    """Whether this is a link in a model's folder; raises ValueError for one that could lead to a file of the user's."""
    if not path.is_symlink() or not (target := path.resolve()).exists():
        return False
    blobs = folder.resolve().parent.parent / "blobs"  # where the Hub's library keeps what a snapshot links to
    if target.parent != blobs and not target.suffix == path.suffix == ".safetensors":
        raise ValueError(f"{path} is a link to {target}, which no model may read: put the file itself there")
    return True


def settings_in(path: Path, name: str) -> list[str]:
    """The `key=value` settings of the run at `path`, if it trains the model called `name`; else none."""
    run = RunFolder(path)
    if not run.exists() or (model := run.config().model).ref != name:
        return []
    return [f"model.{key}={value}" for key in ("kind", "ref", "revision") if (value := getattr(model, key))]


def find_model(name: str, revision: str = "", checkpoint: str = "best") -> FoundModel:
    """Where the model called `name` is; what is elsewhere is fetched, at `revision` if one is given.

    Raises FileNotFoundError or ValueError (an `ExportError` for an export) with what there is instead.
    """
    if name in preset_names():
        return FoundModel(name, "preset", name)
    path = Path(name)
    if RunFolder(path).exists() or is_model_folder(path):
        return FoundModel(name, "folder", str(model_folder(path, checkpoint)))
    here = Path(os.path.expanduser(name))
    for published in PUBLISHED:
        _is_link(here / published, here)  # what it leads to would be copied and read
    try:
        source = fetch_source(name, revision)
    except SourceError as error:
        if path.exists():
            raise
        raise SourceError(f"{error} Or a run, a checkpoint, one of the presets: {', '.join(preset_names())}") from None
    return FoundModel(name, source.kind, str(source.folder), source)
