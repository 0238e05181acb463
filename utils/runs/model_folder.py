"""Where a trained model lies: a run, one of its checkpoints, or a model folder by itself. No torch."""

import json
from pathlib import Path

from utils.runs.checkpoints import find_checkpoint
from utils.runs.folder import open_run

CONFIG_FILE = "config.json"
MOST = 1_000_000  # bytes of it


def kind_of(path: Path) -> str:
    """What kind of model a model folder of ours holds, by its config.json; "" where it is no such folder."""
    try:
        with (path / CONFIG_FILE).open("rb") as file:
            data = file.read(MOST + 1)
        config = json.loads(data) if len(data) <= MOST else None
    except (OSError, ValueError, RecursionError):
        return ""
    return str(config["kind"]) if isinstance(config, dict) and {"format", "kind"} <= set(config) else ""


def is_model_folder(path: Path) -> bool:
    """Whether this is a model folder of ours: its config.json says in which format it is and what kind of model."""
    return bool(kind_of(path))


def model_folder(path: Path, checkpoint: str = "best") -> Path:
    """The model folder itself, or that of a run's checkpoint (best, latest or a step). Raises FileNotFoundError."""
    return path if is_model_folder(path) else find_checkpoint(open_run(path).checkpoints, checkpoint)
