"""Going on with a run: as it is, further than was planned, or with settings that may change on the way. No torch."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.config.load import config_hash, differences, flatten, load_config
from utils.config.schema import RunConfig
from utils.runs.checkpoints import NAME, find_checkpoint
from utils.runs.folder import LAYERS_FILE, METRICS_FILE, RowWriter, RunFolder, now
from utils.runs.lock import RunLock
from utils.runs.rows import ROLLED_BACK
from utils.training.schedule import learning_rate, total_steps

# Settings that say what is shown, looked at or kept, and change no weight; and how sums are rounded, which the level at
# which a run goes on tells.
FREE = {
    "train.eval_every", "train.eval_batches", "train.save_every", "train.log_every", "train.sample_every",
    "train.sample_prompt", "train.sample_tokens", "train.answers_every_eval", "train.stats_every", "train.profile",
    "train.patience", "train.memory_limit_gb", "train.activation_checkpointing", "checkpoint.keep_last",
    "checkpoint.keep_best", "train.device", "train.threads", "train.precision", "train.compile", "train.deterministic",
}  # fmt: skip
HORIZON = {"train.max_steps", "train.epochs"}
SPLIT = {"train.batch_size", "train.grad_accum_steps"}  # free to change as long as their product stays
# Another model, text, order of it, or kind of optimizer (whose state would be of no use) is another run.
FIXED = ("model.", "data.", "train.seed", "train.optimizer")


@dataclass(frozen=True)
class Plan:
    """How a run is to go on."""

    config: RunConfig
    changed: tuple[str, ...]  # `key: old -> new`
    notes: tuple[str, ...]  # what the changes mean, in words


def plan(
    run: RunFolder, words: Sequence[str] = (), more_steps: int = 0, more_epochs: float = 0.0, accept: Sequence[str] = ()
) -> Plan:
    """The settings a run goes on with; nothing is changed yet.

    Args:
        words: settings to change, as `key.path=value`.
        more_steps, more_epochs: by how much the run ends later than planned; one of them.
        accept: keys of settings that may change though they change what is learned.

    Raises:
        ValueError: a setting that cannot change within a run, or that nobody accepted; every one is named.
    """
    old, state = run.config(), run.state()
    if more_steps < 0 or more_epochs < 0 or (more_steps and more_epochs):
        raise ValueError("--more-steps and --more-epochs are above 0, and only one of them is given")
    step, planned = int(state.get("step") or 0), int(state.get("total_steps") or 0)
    words = [*words, *_further(old, step, planned, float(state.get("epoch") or 0.0), more_steps, more_epochs)]
    new = load_config(file=run.path / "config.yaml", overrides=[*words, f"run_dir={run.path}"])
    was, will = flatten(old.model_dump()), flatten(new.model_dump())
    changed = {key for key in was if was[key] != will[key] and key != "run_dir"}
    fitting = int(run.read_json("meta").get("made_with", {}).get("batch_size") or 0)
    if problems := [*_refused(changed, old, new, accept, fitting), *_unknown(accept, was)]:
        raise ValueError("\n".join([f"{run.path} cannot go on so:", *(f"  - {words}" for words in problems)]))
    return Plan(new, tuple(differences(old, new)), tuple(_meaning(changed, old, new, step, planned)))


def _further(old: RunConfig, step: int, planned: int, epoch: float, more_steps: int, more_epochs: float) -> list[str]:
    """The settings that make a run longer, in the unit that its end was given in."""
    if not more_steps and not more_epochs:
        return []
    t = old.train
    if more_epochs and t.epochs:
        return [f"train.epochs={t.epochs + more_epochs!r}"]
    if more_epochs:
        if not step or not epoch:
            raise ValueError("no step of this run is done yet, so nobody knows how long an epoch is: --more-steps N")
        return [f"train.max_steps={t.max_steps + round(more_epochs * step / epoch)}"]
    if t.max_steps:
        return [f"train.max_steps={t.max_steps + more_steps}"]
    if not planned:
        raise ValueError("no step of this run is done yet, so nobody knows how many it has: --more-epochs N")
    return ["train.epochs=0", f"train.max_steps={planned + more_steps}"]


def _refused(changed: set[str], old: RunConfig, new: RunConfig, accept: Sequence[str], fitting: int) -> list[str]:
    """Why some settings cannot change, one line for each; `fitting` is what train.batch_size=auto has found."""
    was, will, found = flatten(old.model_dump()), flatten(new.model_dump()), list[str]()
    before, after = ((c.train.batch_size or fitting) * c.train.grad_accum_steps for c in (old, new))
    for key in sorted(changed - FREE - HORIZON):
        what = f"{key}: {was[key]!r} -> {will[key]!r}"
        if key.startswith(FIXED):
            found.append(f"{what} makes it another run: start one from this model with `tbt train --model RUN`")
        elif key in SPLIT and before != after:
            found.append(
                f"{what} changes which examples a step learns from, so some would be skipped or repeated: keep "
                f"batch_size x grad_accum_steps at {before}"
            )
        elif key not in SPLIT and key not in accept:
            found.append(f"{what} changes what is learned: say --accept {key} if you want that")
    return found


def _unknown(accept: Sequence[str], known: dict[str, object]) -> list[str]:
    return [f"--accept {key}: there is no such setting" for key in accept if key not in known]


def _meaning(changed: set[str], old: RunConfig, new: RunConfig, step: int, planned: int) -> list[str]:
    """What a change of the end or of the schedule does to the learning rate."""
    if not changed & {*HORIZON, "train.schedule", "train.learning_rate", "train.min_lr", "train.decay_share",
                      "train.warmup_steps"}:  # fmt: skip
        return []
    if not planned or not new.train.max_steps:
        return [f"the learning rate follows {new.train.schedule} to the new end"]
    end = total_steps(new.train, 0)
    if end <= step:
        raise ValueError(f"{step} steps are done already: the run cannot end at step {end}")
    before, after = (learning_rate(step, c.train, total) for c, total in ((old, planned), (new, end)))
    return [
        f"the run ends at step {end:,} (planned: {planned:,}); the schedule ({new.train.schedule}) is stretched to it: "
        f"at step {step:,} the learning rate goes from {before:.3g} to {after:.3g}"
    ]


def apply(run: RunFolder, wanted: Plan, checkpoint: str = "latest") -> None:
    """Write the settings into the run, and go back to the checkpoint that is wanted: best, or that of a step.

    Later checkpoints are removed then, and their rows count no more. Every change is an event. Raises BlockingIOError
    where the run is being trained, and FileNotFoundError, which names those there are, for a checkpoint it has not.
    """
    lock = RunLock(run.path)
    if not lock.acquire():
        raise BlockingIOError(f"{run.path} is being trained: `tbt stop {run.path}` has it save and end")
    with lock:
        folder: Path | None = None
        if checkpoint != "latest":
            folder = find_checkpoint(run.checkpoints, checkpoint)
        events = RowWriter(run.path / "events.jsonl")
        try:
            if folder is not None:
                _go_back(run, folder, events)
            if wanted.changed:
                text = "; ".join((*wanted.changed, *wanted.notes))
                row = {"changed": wanted.changed, "config_hash": config_hash(wanted.config), "text": text}
                events.write({"time": now(), "event": "settings", "step": run.state().get("step") or 0, **row})
                events.sync()
                run.create(wanted.config)
            if folder is not None or wanted.changed:
                run.write_json("state", {**run.state(), "status": "interrupted", "message": None})
        finally:
            events.close()


def _go_back(run: RunFolder, folder: Path, events: RowWriter) -> None:
    step = int(folder.name[5:])
    later = [path for path in run.checkpoints.iterdir() if NAME.fullmatch(path.name) and path.name > folder.name]
    gone = ", ".join(sorted(str(int(path.name[5:])) for path in later)) or "none"
    text = f"back to step {step}, as was asked for; later checkpoints removed: {gone}"
    events.write({"time": now(), "event": "rewound", "step": step, "text": text})
    events.sync()
    # Checkpoints before rows, the newest first: wherever this is killed, what is left is a run at some earlier step.
    for path in sorted(later, reverse=True):
        path.rename(path.with_name(f"{path.name}.del"))
        shutil.rmtree(path.with_name(f"{path.name}.del"), ignore_errors=True)
    for name in (METRICS_FILE, LAYERS_FILE):
        if (run.path / name).exists():
            rows = RowWriter(run.path / name)
            rows.write({"step": step, "kind": ROLLED_BACK})
            rows.sync()
            rows.close()
    run.write_json("state", {**run.state(), "step": step})
