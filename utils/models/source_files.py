"""The `source/` folder of a run or model folder: a model from elsewhere, its own files byte for byte. No torch."""

from pathlib import Path

from utils.models.source import PUBLISHED

SOURCE = "source"


def source_files(folder: Path) -> list[Path]:
    """The files that say what a model from elsewhere is: its code and configuration, not its weights."""
    return [folder / name for name in PUBLISHED if (folder / name).is_file()]


def code_of(folder: Path) -> Path | None:
    """The model.py that runs when the model of this run, model folder or source is built; None where none does."""
    for place in (folder, folder / SOURCE, folder / SOURCE / SOURCE):
        path = place / PUBLISHED[0]
        if path.is_file():
            return path
    return None
