"""The `source/` folder of a run or model folder: a model from elsewhere, its own files byte for byte. No torch."""

from pathlib import Path

from utils.models.source import PUBLISHED

SOURCE = "source"


def source_files(folder: Path) -> list[Path]:
    """The files that say what a model from elsewhere is: its code and configuration, not its weights."""
    return [folder / name for name in PUBLISHED if (folder / name).is_file()]
