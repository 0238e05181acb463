"""What happens when a run saves: rows to the disk, a checkpoint, the best one marked, old ones removed."""

from collections.abc import Callable
from dataclasses import asdict

from utils.config.load import flatten
from utils.runs.recorder import Recorder
from utils.training.checkpoint import Checkpointer
from utils.training.memory import is_out_of_memory
from utils.training.probe import probe
from utils.training.trainer import Progress, Trainer


def build_save(checkpointer: Checkpointer, recorder: Recorder, precision: str) -> Callable[[Trainer, bool], None]:
    """What a trainer saves with; `is_best`: whether no model before had a lower validation loss."""

    def save(trainer: Trainer, is_best: bool) -> None:
        recorder.sync()
        step, said = trainer.progress.step, ""
        state = {
            "progress": asdict(trainer.progress),
            "scaler": trainer.scaler.state_dict(),
            "total_steps": trainer.total_steps,
            "settings": flatten({"train": trainer.config.model_dump()}),
            "precision": precision,
        }
        for attempt in range(2):
            try:
                found = probe(trainer.stepper, trainer.val)
                state["probe"] = None if found is None else found.hex()
                checkpointer.save(step, trainer.model, trainer.optimizer, state, trainer.average)
                break
            except Exception as error:  # torch says "no memory" in several ways
                if not is_out_of_memory(error):
                    raise
                said = str(error)
            if attempt:
                raise RuntimeError(
                    f"memory ran out while the checkpoint of step {step} was written: those before it are whole, and "
                    f"the same command goes on from them where there is more memory ({said[:300]})"
                )
            trainer.stepper.forget()  # what training has left behind, and what the C library keeps of it
        if is_best:
            mark_best(checkpointer, trainer.progress)
        checkpointer.prune(step)
        recorder.event("saved", step=step, best=is_best)

    return save


def mark_best(checkpointer: Checkpointer, progress: Progress) -> None:
    """Point best.json at the checkpoint of this moment."""
    if progress.best_val_loss is not None:
        checkpointer.mark_best(progress.step, progress.best_val_loss)
