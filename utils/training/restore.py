"""From a checkpoint back into a trainer: at a resume, and in the midst of a run that has gone wrong."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from utils.runs.checkpoints import NAME, best_checkpoint, verify
from utils.training.checkpoint import Checkpointer, load_checkpoint
from utils.training.guard import Guard
from utils.training.trainer import Progress, Trainer


def take_up(trainer: Trainer, folder: Path) -> None:
    """Put all that a verified checkpoint holds into `trainer`. Raises what `load_checkpoint` raises."""
    state = load_checkpoint(folder, trainer.model, trainer.optimizer, trainer.average)
    trainer.progress = Progress.of(state["progress"])
    trainer.scaler.load_state_dict(state["scaler"])


def build_restore(checkpointer: Checkpointer, fresh: Callable[[], nn.Module]) -> Callable[[Trainer], str]:
    """What a trainer goes back with: to `newest_good`, or to the model that `fresh` makes; says where that is.

    Later checkpoints go: their steps will be done again, with other weights. A run killed after that comes to the same
    point and decides the same, since going back is a function of what it has seen, as all else is.
    """

    def restore(trainer: Trainer) -> str:
        trainer.stepper.forget()
        folder = newest_good(checkpointer.root)
        if folder is not None:
            take_up(trainer, folder)
        else:
            trainer.model.load_state_dict(fresh().state_dict())
            trainer.average.take_over()
            trainer.optimizer.state.clear()
            unused = type(trainer.scaler)(trainer.device.type, enabled=trainer.scaler.is_enabled())
            trainer.scaler.load_state_dict(unused.state_dict())
            trainer.progress = Progress()
        checkpointer.prune(trainer.progress.step)
        return f"step {trainer.progress.step}"

    return restore


def newest_good(root: Path) -> Path | None:
    """The newest whole checkpoint saved while nothing was wrong, or that is the best; else the newest whole one."""
    folders = sorted((path for path in root.glob("step-*") if NAME.fullmatch(path.name)), reverse=True)
    best, newest = best_checkpoint(root), None
    for folder in folders:
        if verify(folder) is not None:
            if folder == best or _was_calm(folder):
                return folder
            newest = newest or folder
    return newest


def _was_calm(folder: Path) -> bool:
    saved = json.loads((folder / "trainer.json").read_text())["progress"]
    return Guard(**saved.get("guard", {})).calm
