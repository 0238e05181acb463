"""`run_training(config)`: the one door to a run. Everything that trains goes through it."""

from collections.abc import Callable
from dataclasses import asdict

import torch

from utils.config.load import config_hash
from utils.config.schema import RunConfig
from utils.data.batches import EvalBatches, TrainBatches
from utils.data.token_store import TokenStore, open_store
from utils.inference.generate import generate_text
from utils.models.load import load_model, resolve_shape
from utils.runs.checkpoints import newest_checkpoint
from utils.runs.folder import RunFolder, now
from utils.runs.lock import RunLock
from utils.runs.recorder import Recorder
from utils.runtime.device import cpu_cores, describe, pick_device, pick_precision
from utils.runtime.environment import environment, git_commit
from utils.runtime.randomness import derive_seed
from utils.training.checkpoint import Checkpointer, load_checkpoint
from utils.training.seed_manager import set_deterministic
from utils.training.trainer import Progress, Trainer, TrainResult

SAMPLE_TEMPERATURE = 0.7  # for the samples during training: they show what was learned, not how wild it can be


def run_training(
    config: RunConfig, stop: Callable[[], int | None] = lambda: None, lock: RunLock | None = None
) -> TrainResult:
    """Train what `config` says into `config.run_dir`, going on from its newest good checkpoint if it has one.

    `stop` is polled; a signal number from it ends the run at the next step, saved. `lock` is the run's, where
    the caller holds it already. Raises ValueError or FileNotFoundError for a request that cannot be met,
    BlockingIOError when the folder has another writer, others when training fails.
    """
    run = RunFolder(config.run_dir)
    run.check_settings(config)
    store = open_store(config.data)
    run.check_data(store.fingerprint)
    device = pick_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    model_config = resolve_shape(config.model, store.tokenizer.vocab_size)
    run.create(config)
    with lock or RunLock(run.path):
        known = run.read_json("meta").get("made_with", {})
        torch.set_num_threads(known.get("threads") or config.train.threads or cpu_cores())
        set_deterministic(config.train.deterministic)
        model = load_model(model_config, store.tokenizer.vocab_size, config.train.seed)
        recorder = Recorder(run)
        checkpointer = Checkpointer(run.checkpoints, model_config, store.tokenizer, config.checkpoint.keep_last)
        trainer = Trainer(
            model.to(device),
            config.train,
            TrainBatches(store.train, config.data.seq_len, config.train.batch_size, config.train.seed),
            EvalBatches(store.val, config.data.seq_len, config.train.batch_size, config.train.eval_batches),
            recorder,
            device,
            precision,
            save=_saver(checkpointer, recorder),
            keep_best=config.checkpoint.keep_best,
            sample=_sampler(store, config, recorder),
            stop=stop,
            floor=store.entropy_floor if not config.train.eval_batches else None,
            bytes_per_token=store.bytes_per_token(),
        )
        level = _write_meta(run, config, store, device, precision)
        try:
            _start_or_resume(trainer, recorder, store, checkpointer, level)
            result = _fit(trainer)
        except Exception as error:
            recorder.event("failed", text=str(error))
            recorder.state(status="failed", message=str(error))
            raise
        else:
            recorder.event("finished" if result.status == "completed" else result.status, step=result.progress.step)
            recorder.state(status=result.status, eta_seconds=None)
            return result
        finally:
            recorder.close()


def _fit(trainer: Trainer) -> TrainResult:
    try:
        return trainer.fit()
    except ValueError as error:  # the request was good when it began, so this is no mistake of the user
        raise RuntimeError(f"training failed at step {trainer.progress.step + 1}: {error}") from error


def _start_or_resume(
    trainer: Trainer, recorder: Recorder, store: TokenStore, checkpointer: Checkpointer, level: str
) -> None:
    folder, damaged = newest_checkpoint(checkpointer.root)
    for bad in damaged:
        recorder.event("damaged", checkpoint=bad.name, text=f"{bad.name} is not whole and was passed over")
    if folder is None:
        recorder.event("started", total_steps=trainer.total_steps)
    else:
        state = load_checkpoint(folder, trainer.model, trainer.optimizer)
        trainer.progress = Progress(**state["progress"])
        trainer.scaler.load_state_dict(state["scaler"])
        if trainer.keep_best and trainer.progress.best_step == trainer.progress.step:
            _mark_best(checkpointer, trainer.progress)  # a kill may have come between the checkpoint and its mark
        recorder.event("resumed", step=trainer.progress.step, checkpoint=folder.name, level=level)
    recorder.state(
        urgent=True,
        status="running",
        step=trainer.progress.step,
        total_steps=trainer.total_steps,
        device=describe(trainer.device),
        entropy_floor=trainer.floor,
        characters_per_token=store.info["val_characters"] / len(store.val),
        message=None,
    )


def _saver(checkpointer: Checkpointer, recorder: Recorder) -> Callable[[Trainer, bool], None]:
    def save(trainer: Trainer, is_best: bool) -> None:
        recorder.sync()
        state = {
            "progress": asdict(trainer.progress),
            "scaler": trainer.scaler.state_dict(),
        }
        step = trainer.progress.step
        checkpointer.save(step, trainer.model, trainer.optimizer, state)
        if is_best:
            _mark_best(checkpointer, trainer.progress)
        checkpointer.prune(step)
        recorder.event("saved", step=step, best=is_best)

    return save


def _mark_best(checkpointer: Checkpointer, progress: Progress) -> None:
    if progress.best_val_loss is not None:
        checkpointer.mark_best(progress.step, progress.best_val_loss)


def _sampler(store: TokenStore, config: RunConfig, recorder: Recorder) -> Callable[[Trainer], None]:
    t = config.train
    unknown = store.tokenizer.unknown_characters(t.sample_prompt)
    if t.sample_every and unknown:
        raise ValueError(f"train.sample_prompt has characters the training text lacks: {unknown!r}")

    def sample(trainer: Trainer) -> None:
        seed = derive_seed(t.seed, "sample", trainer.progress.step) % 2**32
        pieces = generate_text(
            trainer.model, store.tokenizer, t.sample_prompt, t.sample_tokens, SAMPLE_TEMPERATURE, seed=seed
        )
        recorder.event("sample", step=trainer.progress.step, text=t.sample_prompt + "".join(pieces))

    return sample


def _write_meta(run: RunFolder, config: RunConfig, store: TokenStore, device: torch.device, precision: str) -> str:
    """Write once what this run is and was made with; gives back the level at which a resume here goes on.

    exact: the same hardware, software and settings, so bit for bit as if never interrupted. continuous: nothing is
    skipped or repeated, but sums may be rounded otherwise.
    """
    made_with = {
        "torch": torch.__version__,
        "device": describe(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic": device.type == "cpu" or torch.are_deterministic_algorithms_enabled(),
    }
    meta = run.read_json("meta")
    if not meta:
        run.write_json("environment", environment())
        meta = {
            "run": run.name,
            "created": now(),
            "config_hash": config_hash(config),
            "git_commit": git_commit(),
            "seed": config.train.seed,
            "data": store.fingerprint,
            "tokenizer": store.tokenizer.fingerprint,
            "made_with": made_with,
        }
        run.write_json("meta", meta)
    return "exact" if made_with["deterministic"] and meta["made_with"] == made_with else "continuous"
