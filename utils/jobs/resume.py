"""Going on with a run: as it is, further than was planned, or with settings that may change on the way. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.config.changes import FIXED, HORIZON, ROUNDING, SHOWN, SPLIT
from utils.config.load import config_hash, differences, flatten, load_config
from utils.config.schema import RunConfig
from utils.runs.checkpoints import NAME, find_checkpoint, newest_checkpoint
from utils.runs.folder import LAYERS_FILE, METRICS_FILE, RowWriter, RunFolder, now
from utils.runs.lock import RunLock
from utils.runs.rows import ROLLED_BACK
from utils.runtime.files import fsync_folder
from utils.training.schedule import learning_rate


@dataclass(frozen=True)
class Plan:
    """How a run is to go on."""

    old: RunConfig
    config: RunConfig
    step: int  # of the checkpoint it goes on from
    rewinds: bool  # whether later checkpoints are given up for that
    changed: tuple[str, ...]  # `key: old -> new`
    notes: tuple[str, ...]  # what the changes mean, in words


def plan(
    run: RunFolder,
    words: Sequence[str] = (),
    more_steps: int = 0,
    more_epochs: float = 0.0,
    accept: Sequence[str] = (),
    checkpoint: str = "latest",
) -> Plan:
    """How a run goes on; nothing is changed yet.

    Args:
        words: settings to change, as `key.path=value`.
        more_steps, more_epochs: by how much the run ends later than planned; one of them.
        accept: keys of settings that may change though they change what is learned.
        checkpoint: latest, best or a step.

    Raises:
        ValueError: a setting that cannot change within a run, or that nobody accepted; every one is named.
        FileNotFoundError: it has no such checkpoint; those there are are named.
    """
    old = run.config()
    if more_steps < 0 or more_epochs < 0 or (more_steps and more_epochs):
        raise ValueError("--more-steps and --more-epochs are above 0, and only one of them is given")
    if checkpoint == "latest":
        folder = newest_checkpoint(run.checkpoints)[0]
    else:
        folder = find_checkpoint(run.checkpoints, checkpoint)
    step = _step(folder) if folder else 0
    words = [*words, *_further(run, old, more_steps, more_epochs), f"run_dir={run.path}"]
    new = load_config(file=run.path / "config.yaml", overrides=words)
    was, will = flatten(old.model_dump()), flatten(new.model_dump())
    changed = {key for key in was if was[key] != will[key] and key != "run_dir"}
    fitting = int(run.read_json("meta").get("made_with", {}).get("batch_size") or 0)
    problems = [*_refused(changed, old, new, accept, fitting), *_unknown(accept, was)]
    planned = int(run.state().get("total_steps") or 0)
    end = _end(old, new, planned)
    if changed & HORIZON and end and end <= step:
        problems.append(f"{step} steps are done already: the run cannot end at step {end}")
    if problems:
        raise ValueError("\n".join([f"{run.path} cannot go on so:", *(f"  - {problem}" for problem in problems)]))
    notes = _meaning(changed, old, new, step, planned, end)
    return Plan(old, new, step, checkpoint != "latest", tuple(differences(old, new)), notes)


def _step(folder: Path) -> int:
    return int(folder.name[5:])


def _further(run: RunFolder, old: RunConfig, more_steps: int, more_epochs: float) -> list[str]:
    """The setting that makes a run longer, in the unit that its end was given in."""
    if not more_steps and not more_epochs:
        return []
    t, state = old.train, run.state()
    if more_epochs and t.epochs:
        return [f"train.epochs={t.epochs + more_epochs!r}"]
    if more_steps and t.max_steps:
        return [f"train.max_steps={t.max_steps + more_steps}"]
    step, epoch, planned = (float(state.get(key) or 0) for key in ("step", "epoch", "total_steps"))
    if not step or not epoch or not planned:
        other = "--more-steps" if more_epochs else "--more-epochs"
        raise ValueError(f"no step of this run is done yet, so nobody knows how long an epoch is: use {other}")
    if more_epochs:
        return [f"train.max_steps={t.max_steps + max(1, round(more_epochs * step / epoch))}"]
    return [f"train.epochs={t.epochs * (planned + more_steps) / planned!r}"]


def _end(old: RunConfig, new: RunConfig, planned: int) -> int:
    """About the last step of the run from now on; 0 where nobody knows yet."""
    if new.train.max_steps:
        return new.train.max_steps
    return round(planned * new.train.epochs / old.train.epochs) if old.train.epochs else 0


def _refused(changed: set[str], old: RunConfig, new: RunConfig, accept: Sequence[str], fitting: int) -> list[str]:
    """Why some settings cannot change, one line for each; `fitting` is what train.batch_size=auto has found."""
    was, will, found = flatten(old.model_dump()), flatten(new.model_dump()), list[str]()
    before, after = ((c.train.batch_size or fitting) * c.train.grad_accum_steps for c in (old, new))
    for key in sorted(changed - SHOWN - ROUNDING - HORIZON):
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


def _meaning(
    changed: set[str], old: RunConfig, new: RunConfig, step: int, planned: int, end: int
) -> tuple[str, ...]:  # fmt: skip
    """What a change of the end does to the learning rate."""
    if not changed & HORIZON or not planned or not end:
        return ()
    before, after = (learning_rate(step, c.train, total) for c, total in ((old, planned), (new, end)))
    return (
        f"the run ends at step {end:,} (planned: {planned:,}); the schedule ({new.train.schedule}) is stretched to it: "
        f"at step {step:,} the learning rate goes from {before:.3g} to {after:.3g}",
    )


def apply(run: RunFolder, wanted: Plan) -> None:
    """Have the run go on as planned; killed at any instant, it goes on as it was or as planned.

    Rows of steps that will be done again count no more. Where an earlier checkpoint is wanted, later ones are set
    aside, to be removed by the next one that is saved. Every change is an event. Raises BlockingIOError where the run
    is being trained, or has been changed since the plan was made.
    """
    lock = RunLock(run.path)
    if not lock.acquire():
        raise BlockingIOError(f"{run.path} is being trained: `tbt stop {run.path}` has it save and end")
    with lock:
        if run.config() != wanted.old:
            raise BlockingIOError(f"{run.path} has just been changed by somebody else: look at it, and try again")
        # First, as it is true of any run that somebody wants to go on with: a completed one would be left alone.
        run.write_json("state", {**run.state(), "status": "interrupted", "message": None})
        events = RowWriter(run.path / "events.jsonl")
        try:
            if wanted.rewinds:
                _set_aside(run, wanted.step, events)
            for name in (METRICS_FILE, LAYERS_FILE):
                if (run.path / name).exists():
                    rows = RowWriter(run.path / name)
                    rows.write({"step": wanted.step, "kind": ROLLED_BACK})
                    rows.sync()
                    rows.close()
            if wanted.changed:
                text = "; ".join((*wanted.changed, *wanted.notes))
                row = {"changed": wanted.changed, "config_hash": config_hash(wanted.config), "text": text}
                events.write({"time": now(), "event": "settings", "step": wanted.step, **row})
                events.sync()
                run.create(wanted.config)
        finally:
            events.close()


def _set_aside(run: RunFolder, step: int, events: RowWriter) -> None:
    later = [path for path in run.checkpoints.iterdir() if NAME.fullmatch(path.name) and _step(path) > step]
    for path in sorted(later, reverse=True):  # the newest first: wherever this is killed, the newest left is whole
        path.rename(path.with_name(f"{path.name}.del"))
    fsync_folder(run.checkpoints)
    gone = ", ".join(sorted(str(_step(path)) for path in later)) or "none"
    text = f"back to step {step}, as was asked for; later checkpoints set aside: {gone}"
    events.write({"time": now(), "event": "rewound", "step": step, "text": text})
    events.sync()
    run.write_json("state", {**run.state(), "step": step})
