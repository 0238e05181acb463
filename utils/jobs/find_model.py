"""What a person calls a model, and where it is: a preset, a run, a checkpoint, a folder, a gist, a Hub repository."""

from dataclasses import dataclass
from pathlib import Path

from utils.config.load import preset_names
from utils.models.source import ModelSource, SourceError
from utils.models.source_files import code_of
from utils.models.sources import fetch_source
from utils.runs.folder import RunFolder
from utils.runs.model_folder import is_model_folder, model_folder
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
        """The model.py that runs when it is built; None where none does."""
        return None if self.kind == "preset" else code_of(Path(self.where))

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
        """What a process that builds it has to read: its folder, and what links in it lead to (the Hub's cache)."""
        if self.kind == "preset":
            return []
        folder = Path(self.where).resolve()
        return [folder, *{path.resolve() for path in folder.iterdir() if path.is_symlink()}]


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
    try:
        source = fetch_source(name, revision)
    except SourceError as error:
        if path.exists():
            raise
        raise SourceError(f"{error} Or a run, a checkpoint, one of the presets: {', '.join(preset_names())}") from None
    return FoundModel(name, source.kind, str(source.folder), source)
