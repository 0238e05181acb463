"""From a checkpoint back into a trainer: at a resume, and in the midst of a run that has gone wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from utils.config.changes import ROUNDING, SHOWN
from utils.config.load import flatten
from utils.runs.checkpoints import NAME, best_checkpoint, newest_checkpoint, verify
from utils.runs.recorder import Recorder
from utils.training.checkpoint import Checkpointer, load_checkpoint
from utils.training.guard import Guard
from utils.training.probe import differs, probe
from utils.training.saving import mark_best
from utils.training.trainer import Progress, Trainer


def take_up(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Put all that a verified checkpoint holds into `trainer`; gives back what was saved beside the tensors.

    Raises what `load_checkpoint` raises.
    """
    state = load_checkpoint(folder, trainer.model, trainer.optimizer, trainer.average)
    trainer.progress = Progress.of(state["progress"])
    if state["scaler"]:  # else it was saved in a format that needs none
        trainer.scaler.load_state_dict(state["scaler"])
    if trainer.total_steps > state.get("total_steps", trainer.total_steps):  # somebody wants to go on past an early end
        trainer.progress.stopped_early, trainer.progress.bad_evals = False, 0
    return state


def start_or_resume(
    trainer: Trainer, recorder: Recorder, checkpointer: Checkpointer, precision: str, changed: list[str]
) -> None:
    """Take up the newest checkpoint that verifies, and record at which level the run goes on; or begin.

    exact: the same hardware, software and settings, and the probe's loss is what it was, bit for bit: so will be all
    that follows. continuous: nothing is skipped or repeated, but sums are rounded otherwise, for the reasons `changed`
    or because the probe says so. changed: it learns with other settings from here on, as somebody has asked for. Raises
    ValueError where the probe's loss is another one altogether.
    """
    folder, damaged = newest_checkpoint(checkpointer.root)
    for bad in damaged:
        recorder.event("damaged", checkpoint=bad.name, text=f"{bad.name} is not whole and was passed over")
    if folder is None:
        recorder.event("started", total_steps=trainer.total_steps)
        return
    state, now = take_up(trainer, folder), None
    if state.get("probe"):
        now = probe(trainer.stepper, trainer.val)
    if now is not None:
        # TF32 on a GPU keeps no more digits than bf16 does.
        coarse = ["bf16"] if trainer.device.type == "cuda" and not trainer.config.deterministic else []
        before = float.fromhex(state["probe"])
        changed = [
            *changed,
            *filter(None, [differs(before, now, precision, state.get("precision", precision), *coarse)]),
        ]
    settings = other_settings(state.get("settings", {}), trainer)
    if trainer.keep_best and trainer.progress.best_step == trainer.progress.step:
        mark_best(checkpointer, trainer.progress)  # a kill may have come between the checkpoint and its mark
    level, step = "changed" if settings else "continuous" if changed else "exact", trainer.progress.step
    why = f"rounded otherwise from here on ({'; '.join(changed)})" if changed else "as if never interrupted"
    changed = [*settings, *changed]
    if settings:
        why = f"not as it would have without ({'; '.join(changed)})"
    recorder.event(
        "resumed",
        step=step,
        checkpoint=folder.name,
        level=level,
        changed=changed,
        probe=now,
        text=f"went on from {folder.name}, {level}: {why}",
    )


def other_settings(saved: dict[str, Any], trainer: Trainer) -> list[str]:
    """`key: old -> new` of each setting that decides what is learned and is not what it was when `saved`."""
    current = flatten({"train": trainer.config.model_dump()})
    return [
        f"{key}: {saved[key]!r} -> {value!r}"
        for key, value in current.items()
        if key not in SHOWN | ROUNDING and key in saved and saved[key] != value
    ]


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
