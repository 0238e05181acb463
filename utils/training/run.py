"""`run_training(config)`: the one door to a run. Everything that trains goes through it."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

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


def run_training(config: RunConfig, stop: Callable[[], int | None] = lambda: None) -> TrainResult:
    """Train what `config` says into `config.run_dir`, going on from its newest good checkpoint if it has one.

    `stop` is polled; a signal number from it ends the run at the next step, saved. Raises ValueError or
    FileNotFoundError for a request that cannot be met, BlockingIOError when the folder has another writer.
    """
    run = RunFolder(config.run_dir)
    run.check_settings(config)
    store = open_store(config.data)
    device = pick_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    model_config = resolve_shape(config.model, store.tokenizer.vocab_size)
    run.create(config)
    with RunLock(run.path):
        threads = run.read_json("meta").get("threads") or config.train.threads or cpu_cores()
        torch.set_num_threads(threads)
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
            save=_saver(checkpointer, recorder, store),
            keep_best=config.checkpoint.keep_best,
            sample=_sampler(store, config, recorder),
            stop=stop,
            floor=store.entropy_floor if not config.train.eval_batches else None,
            bytes_per_token=store.bytes_per_token(),
        )
        _write_meta(run, config, store, device, precision, threads)
        try:
            _start_or_resume(trainer, recorder, store, checkpointer)
            result = trainer.fit()
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


def _start_or_resume(trainer: Trainer, recorder: Recorder, store: TokenStore, checkpointer: Checkpointer) -> None:
    folder, damaged = newest_checkpoint(checkpointer.root)
    for bad in damaged:
        recorder.event("damaged", checkpoint=bad.name, text=f"{bad.name} is not whole and was passed over")
    if folder is None:
        recorder.event("started", total_steps=trainer.total_steps)
    else:
        state = load_checkpoint(folder, trainer.model, trainer.optimizer)
        if state["data"] != store.fingerprint:
            raise ValueError(
                f"{folder} was trained on other text or with another tokenizer (fingerprint {state['data']}, and the "
                f"text now gives {store.fingerprint}): bring the old text back, or start a new run with --run-dir"
            )
        trainer.progress = Progress(**state["progress"])
        trainer.scaler.load_state_dict(state["scaler"])
        if trainer.keep_best and trainer.progress.best_step == trainer.progress.step:
            _mark_best(checkpointer, trainer.progress)  # a kill may have come between the checkpoint and its mark
        recorder.event("resumed", step=trainer.progress.step, checkpoint=folder.name)
    recorder.state(
        urgent=True,
        status="running",
        step=trainer.progress.step,
        total_steps=trainer.total_steps,
        device=describe(trainer.device),
        entropy_floor=store.entropy_floor,
        characters_per_token=store.info["val_characters"] / len(store.val),
        message=None,
    )


def _saver(checkpointer: Checkpointer, recorder: Recorder, store: TokenStore) -> Callable[[Trainer, bool], None]:
    def save(trainer: Trainer, is_best: bool) -> None:
        recorder.sync()
        state = {
            "progress": asdict(trainer.progress),
            "scaler": trainer.scaler.state_dict(),
            "data": store.fingerprint,
        }
        step = trainer.progress.step
        checkpointer.save(step, trainer.model, trainer.optimizer, state)
        if is_best:
            _mark_best(checkpointer, trainer.progress)
        checkpointer.prune()
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


def _write_meta(
    run: RunFolder, config: RunConfig, store: TokenStore, device: torch.device, precision: str, threads: int
) -> None:
    """Write once what this run is and what it was made with."""
    if run.read_json("meta"):
        return
    run.write_json("environment", {**environment(), "device": describe(device)})
    meta: dict[str, Any] = {
        "run": run.name,
        "created": now(),
        "config_hash": config_hash(config),
        "git_commit": git_commit(),
        "torch": torch.__version__,
        "seed": config.train.seed,
        "device": device.type,
        "precision": precision,
        "threads": threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "data": store.fingerprint,
        "tokenizer": store.tokenizer.fingerprint,
    }
    run.write_json("meta", meta)
