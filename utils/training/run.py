"""`run_training(config)`: the one door to a run. Everything that trains goes through it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from utils.config.load import config_hash
from utils.config.schema import BUILT_IN, DataConfig, RunConfig
from utils.data.batching.tasks import build_batches
from utils.data.storing.run_store import remembered_store
from utils.data.storing.token_store import TokenStore, for_settings, open_store
from utils.data.tokenizing.tokenizer import load_tokenizer, tokens_needed
from utils.inference.generate import generate_text, task_of
from utils.models.folder import read_config
from utils.models.load import load_model, resolve_shape
from utils.models.source_files import SOURCE
from utils.runs.checkpoints import newest_checkpoint
from utils.runs.folder import RunFolder, now
from utils.runs.lock import RunLock
from utils.runs.recorder import Recorder
from utils.runtime.device import cpu_cores, describe, pick_device, pick_precision
from utils.runtime.environment import environment
from utils.runtime.randomness import derive_seed
from utils.training.checkpoint import Checkpointer, load_checkpoint
from utils.training.evaluate import what_it_takes
from utils.training.seed_manager import set_deterministic
from utils.training.trainer import Progress, Trainer, TrainResult

SAMPLE_TEMPERATURE = 0.7  # for the samples during training: they show what was learned, not how wild it can be


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
    known = remembered_store(run)
    store = for_settings(known, config.data) if known else open_store(config.data, source)
    run.check_data(store.fingerprint)
    device = pick_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    if config.model.kind == "bdh" and config.train.precision == "auto" and precision == "fp16":
        precision = "fp32"  # its sums over a text are not scaled down, and fp16 ends at 65504
    model_config = resolve_shape(config.model, store.tokenizer.vocab_size)
    if source and config.model.kind == "folder":
        model_config = read_config(source)
    run.create(config)
    with lock or RunLock(run.path):
        known = run.read_json("meta").get("made_with", {})
        torch.set_num_threads(known.get("threads") or config.train.threads or cpu_cores())
        set_deterministic(config.train.deterministic)
        vocab_size = store.tokenizer.vocab_size
        model = load_model(config.model, vocab_size, config.train.seed, source)
        task = choose_task(config.data, model, store)
        recorder = Recorder(run)
        if source and config.model.kind == "folder":
            _check_tokenizer(source, store, config)
            source = source / SOURCE if (source / SOURCE).is_dir() else None
        checkpointer = Checkpointer(run.checkpoints, model_config, store.tokenizer, config.checkpoint.keep_last, source)
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
        trainer = Trainer(
            model.to(device),
            config.train,
            train,
            val,
            recorder,
            device,
            precision,
            save=_saver(checkpointer, recorder),
            keep_best=config.checkpoint.keep_best,
            sample=_sampler(store, config, recorder, task),
            stop=stop,
            floor=store.entropy_floor if task == "causal" and not config.train.eval_batches else None,
            bytes_per_token=store.bytes_per_token() if task == "causal" and store.kind == "text" else None,
        )
        level = _write_meta(run, config, store, device, precision, task)
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


def choose_task(data: DataConfig, model: torch.nn.Module, store: TokenStore) -> str:
    """The task to train: what `data.task` says, or what the model is made for. Raises ValueError if it can't be."""
    made_for, tokenizer = task_of(model), store.tokenizer
    task = made_for if data.task == "auto" else data.task
    if task != made_for:
        raise ValueError(f"data.task={task} does not fit this model, which is made for {made_for}: use data.task=auto")
    if task == "classification" and store.kind != "labelled":
        raise ValueError(
            "this model is a classifier, and these documents have no labels: data.label_field=COLUMN names theirs "
            "(sources csv, jsonl, parquet, hub)"
        )
    rows = model.shape.vocab_size
    if task == "masked" and tokenizer.mask_id is None and rows < (needed := tokens_needed(task, tokenizer.vocab_size)):
        raise ValueError(
            f"data.task={task} needs {needed} tokens, the mask being the last, and the model's table has "
            f"{rows}: lower data.vocab_size to {rows - 1}"
        )
    return task


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


def _sampler(store: TokenStore, config: RunConfig, recorder: Recorder, task: str) -> Callable[[Trainer], None]:
    t = config.train
    if task == "classification":  # says what a text is, and writes none
        return lambda trainer: None
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
    run: RunFolder, config: RunConfig, store: TokenStore, device: torch.device, precision: str, task: str
) -> str:
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
        made_in = run.read_json("environment") or environment()  # a launcher may have looked: a box sees less
        run.write_json("environment", made_in)
        meta = {
            "run": run.name,
            "created": now(),
            "config_hash": config_hash(config),
            "git_commit": made_in["git_commit"],
            "seed": config.train.seed,
            "task": task,
            "source": run.read_json("source").get("source"),  # where a model from elsewhere came from
            "data": store.fingerprint,
            "data_made_of": store.info["made_of"],
            "tokenizer": store.tokenizer.fingerprint,
            "made_with": made_with,
        }
        run.write_json("meta", meta)
    return "exact" if made_with["deterministic"] and meta["made_with"] == made_with else "continuous"
