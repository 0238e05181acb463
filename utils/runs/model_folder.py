"""Where a trained model lies: a run, one of its checkpoints, or a model folder by itself. No torch."""

import json
from pathlib import Path

from utils.runs.checkpoints import find_checkpoint
from utils.runs.folder import open_run

CONFIG_FILE = "config.json"


def is_model_folder(path: Path) -> bool:
    """Whether this is a model folder of ours: its config.json says in which format it is and what kind of model."""
    try:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"format", "kind"} <= set(config)


def model_folder(path: Path, checkpoint: str = "best") -> Path:
    """The model folder itself, or that of a run's checkpoint (best, latest or a step). Raises FileNotFoundError."""
    return path if is_model_folder(path) else find_checkpoint(open_run(path).checkpoints, checkpoint)
