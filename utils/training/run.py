"""`run_training(config)`: the one door to a run. Everything that trains goes through it."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from utils.config.schema import BUILT_IN, RunConfig
from utils.data.batching.tasks import build_batches
from utils.data.storing.run_store import remembered_store
from utils.data.storing.token_store import TokenStore, for_settings, open_store
from utils.data.tokenizing.tokenizer import load_tokenizer
from utils.models.checkpointing import use_checkpointing
from utils.models.folder import read_config
from utils.models.load import load_model, resolve_shape
from utils.models.source_files import SOURCE
from utils.runs.folder import RunFolder
from utils.runs.lock import RunLock
from utils.runs.recorder import Recorder
from utils.runtime.device import cpu_cores, describe, pick_device, pick_precision
from utils.runtime.heap import keep_freed_memory
from utils.runtime.peak import matmul_peak
from utils.training.answers import build_answering
from utils.training.checkpoint import Checkpointer
from utils.training.choices import choose_compile, choose_precision, choose_task, with_batch_size, with_optimizer
from utils.training.evaluate import what_it_takes
from utils.training.flops import flops_per_token
from utils.training.made_with import write_meta
from utils.training.memory import limited
from utils.training.profile import Profile
from utils.training.restore import build_restore, start_or_resume
from utils.training.samples import build_sampling
from utils.training.saving import build_save
from utils.training.seed_manager import set_deterministic
from utils.training.trainer import Trainer, TrainResult


def run_training(
    config: RunConfig, stop: Callable[[], int | None] = lambda: None, lock: RunLock | None = None
) -> TrainResult:
    """Train what `config` says into `config.run_dir`, going on from its newest good checkpoint if it has one.

    A model from elsewhere (kind builder, hub, folder) is built from the files in the run's `source/`, where the
    launcher put them; an export's code runs in this process.

    `stop` is polled; a signal number from it ends the run at the next step, saved. `lock` is the run's, where
    the caller holds it already. Raises ValueError or FileNotFoundError for a request that cannot be met,
    BlockingIOError when the folder has another writer, others when training fails.
    """
    run = RunFolder(config.run_dir)
    run.check_settings(config)
    source = None if config.model.kind in BUILT_IN else run.path / SOURCE
    if source and not source.is_dir():
        raise ValueError(f"{source} is missing: start a run of model.kind={config.model.kind} with `tbt train`")
    store = remembered_store(run)
    store = for_settings(store, config.data) if store else open_store(config.data, source)
    run.check_data(store.fingerprint)
    device = pick_device(config.train.device)
    pick_precision(config.train.precision, device, gains=False)  # a format that is not to be had is said at once
    model_config = resolve_shape(config.model, store.tokenizer.vocab_size)
    if source and config.model.kind == "folder":
        model_config = read_config(source)
    run.create(config)
    asked, notes = config, list[str]()
    with lock or RunLock(run.path), limited(config.train.memory_limit_gb, device, notes.append):
        known = run.read_json("meta").get("made_with", {})
        torch.set_num_threads(config.train.threads or known.get("threads") or cpu_cores())
        set_deterministic(config.train.deterministic)
        if device.type == "cpu":
            keep_freed_memory()
        if device.type == "cuda":
            torch.set_float32_matmul_precision("highest" if config.train.deterministic else "high")  # high: TF32
        vocab_size = store.tokenizer.vocab_size
        model = load_model(config.model, vocab_size, config.train.seed, source)
        if config.train.activation_checkpointing:
            use_checkpointing(model)
        precision = choose_precision(config, model, device, known.get("precision"))
        task = choose_task(config.data, model, store)
        recorder = Recorder(run)
        files = source
        if source and config.model.kind == "folder":
            _check_tokenizer(source, store, config)
            source = source / SOURCE if (source / SOURCE).is_dir() else None
        checkpointer = Checkpointer(run.checkpoints, model_config, store.tokenizer, config.checkpoint.keep_last, source)
        if not config.train.batch_size:
            config = with_batch_size(config, known.get("batch_size"), store, model.to(device), task, precision, notes)
        config = with_optimizer(config, model, known.get("optimizer"))
        train, val = build_batches(
            store,
            config.data,
            config.train.batch_size,
            config.train.grad_accum_steps,
            config.train.seed,
            task,
            **what_it_takes(model),
            eval_batches=config.train.eval_batches,
        )
        answer = build_answering(store, config.data, task, val, config.train.answers_every_eval, recorder.event)
        trainer = Trainer(
            model.to(device),
            config.train,
            train,
            val,
            recorder,
            device,
            precision,
            save=build_save(checkpointer, recorder, precision),
            restore=build_restore(checkpointer, lambda: load_model(config.model, vocab_size, config.train.seed, files)),
            keep_best=config.checkpoint.keep_best,
            sample=build_sampling(store, config, recorder, task),
            answer=lambda trainer: answer(trainer.model, trainer.progress.step),
            stop=stop,
            floor=store.entropy_floor if task == "causal" and not config.train.eval_batches else None,
            bytes_per_token=store.bytes_per_token() if task == "causal" and store.kind == "text" else None,
            flops=flops_per_token(model, config.data.seq_len, train.examples(np.arange(1))),
            peak=matmul_peak(device, precision),
            profile=Profile(run.path / "profile", config.train.profile, recorder.event),
        )
        compiled = choose_compile(config, trainer.stepper, trainer.total_steps, known)
        if compiled:
            trainer.stepper.compile(lambda words: recorder.event("alert", step=trainer.progress.step, text=words))
        changed = write_meta(run, asked, store, device, precision, task, config.train, compiled)
        try:
            start_or_resume(trainer, recorder, checkpointer, precision, changed)
            recorder.state(
                urgent=True,
                status="running",
                step=trainer.progress.step,
                total_steps=trainer.total_steps,
                device=describe(device),
                entropy_floor=trainer.floor,
                characters_per_token=store.info["val_characters"] / len(store.val),
                message=None,
            )
            for words in notes:
                recorder.event("note", step=trainer.progress.step, text=words)
            result = _fit(trainer)
        except Exception as error:
            words = str(error) or type(error).__name__  # a MemoryError says nothing more
            recorder.event("failed", text=words)
            recorder.state(status="failed", message=words)
            with suppress(OSError):  # what is wrong with the disk has been said
                recorder.close()
            raise
        else:
            recorder.event("finished" if result.status == "completed" else result.status, step=result.progress.step)
            recorder.state(status=result.status, eta_seconds=None)
            recorder.close()
            return result


def _check_tokenizer(source: Path, store: TokenStore, config: RunConfig) -> None:
    """Trained weights know tokens by number: another tokenizer would make them read noise."""
    if config.model.pretrained and load_tokenizer(source).fingerprint != store.tokenizer.fingerprint:
        raise ValueError(
            f"model.ref={config.model.ref} was trained with another tokenizer than these data.* settings make: "
            "train it on the same text, or draw new weights with model.pretrained=false"
        )


def _fit(trainer: Trainer) -> TrainResult:
    try:
        return trainer.fit()
    except ValueError as error:  # the request was good when it began, so this is no mistake of the user
        raise RuntimeError(f"training failed at step {trainer.progress.step + 1}: {error}") from error
    finally:
        if trainer.profile:
            trainer.profile.close()
