"""Checkpoints that are whole or not there; loading takes the newest one whose every byte is right.

Written to a temporary sibling, each file fsynced, MANIFEST.json with sizes and sha256 last, then renamed.
A checkpoint is a model folder (config.json, model.safetensors, tokenizer.json) with optimizer.safetensors
and trainer.json beside it. Nothing is pickled. Where a run keeps an average of its weights, model.safetensors is
that average, which is what is used, and training.safetensors holds the weights that training goes on from.
A model from elsewhere has its source/ in it, so a checkpoint is complete by itself.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file
from torch import nn

from utils.config.schema import ModelConfig
from utils.data.tokenizing.tokenizer import Tokenizer
from utils.models.folder import WEIGHTS_FILE, save_model, unwrap
from utils.runs.checkpoints import NAME, best_checkpoint, folder_name, newest_checkpoint, verify
from utils.runtime.files import fsync_file, fsync_folder, retried, sha256_file, sha256_json, write_atomic
from utils.training.ema import WeightAverage

FORMAT = 1
TRAINING_FILE = "training.safetensors"


class Checkpointer:
    """The checkpoints of one run. Only the holder of the run's lock may save."""

    def __init__(
        self,
        root: Path,
        model_config: ModelConfig,
        tokenizer: Tokenizer,
        keep_last: int = 2,
        source: Path | None = None,
    ) -> None:
        self.root, self.model_config, self.tokenizer, self.keep_last = root, model_config, tokenizer, keep_last
        self.source = source  # the files of a model from elsewhere

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        average: WeightAverage | None = None,
    ) -> Path:
        """Write the checkpoint of `step`; when this returns, it is on the disk and has been read back.

        With an `average` of the model's weights that is on, the model folder holds the average. Where the disk fails it
        is tried again, where it is full after older checkpoints were removed. Raises OSError where that does not help,
        and FloatingPointError for weights that are not finite: those are never saved.
        """
        final = self.root / folder_name(step)
        if verify(final) is not None:
            return final
        for name, tensor in unwrap(model).named_parameters():
            if not torch.isfinite(tensor).all():
                raise FloatingPointError(f"{name} has values that are not finite at step {step}: not saved")
        building = self.root / f"{final.name}.tmp-{os.getpid()}"

        def write() -> None:
            try:
                with _errors_of_the_disk():
                    self._write(building, final, step, model, optimizer, state, average)
            except OSError as error:
                shutil.rmtree(building, ignore_errors=True)
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    self._make_room()
                raise

        try:
            retried(write)
        except OSError as error:
            raise OSError(error.errno, self._what_is_missing(step, model, optimizer, error)) from error
        return final

    def _write(
        self,
        building: Path,
        final: Path,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        average: WeightAverage | None,
    ) -> None:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)  # what is there does not verify
        building.mkdir(parents=True)
        average = average or WeightAverage(model, 0.0)
        with average.in_place():
            save_model(building, model, self.model_config, self.source)
        if average.is_on:
            save_file(average.weights(), building / TRAINING_FILE)
        self.tokenizer.save(building)
        save_file(_optimizer_tensors(model, optimizer), building / "optimizer.safetensors")
        (building / "trainer.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}, indent=2))
        _write_manifest(building, step)
        os.rename(building, final)
        fsync_folder(self.root)
        if verify(final) is None:
            raise OSError(errno.EIO, f"{final} does not read back as it was written: is the disk failing?")

    def _what_is_missing(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, error: OSError) -> str:
        tensors = [*model.parameters(), *(t for moments in optimizer.state.values() for t in moments.values())]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
        words = f"the checkpoint of step {step} could not be written to {self.root} ({error.strerror or error})"
        with contextlib.suppress(OSError):
            words += f"; it takes about {size:,.0f} MB, and {shutil.disk_usage(self.root).free / 1e6:,.0f} MB are free"
        return words

    def mark_best(self, step: int, val_loss: float) -> None:
        """Point best.json at a checkpoint that is already on the disk."""
        manifest = sha256_file(self.root / folder_name(step) / "MANIFEST.json")
        write_atomic(
            self.root / "best.json", json.dumps({"step": step, "val_loss": val_loss, "manifest_sha256": manifest})
        )

    def prune(self, saved: int) -> None:
        """Remove all but the newest `keep_last` and the best, now that the checkpoint of step `saved` is on the disk.

        What killed processes left behind goes, too, and so do later checkpoints: a run goes on from its newest
        good one, so any later than what it has just saved was found damaged.
        """
        self._clear()
        self._remove([step for step in self._steps() if step > saved])
        self._remove(self._steps()[: -self.keep_last])

    def _make_room(self) -> None:
        """Remove all that are older than the newest whole one, but for the best."""
        newest, _ = newest_checkpoint(self.root)
        if newest is not None:
            self._remove([step for step in self._steps() if folder_name(step) < newest.name])

    def _remove(self, steps: list[int]) -> None:
        best = best_checkpoint(self.root)
        for step in steps:
            folder = self.root / folder_name(step)
            if folder != best:
                # Renamed first: a half-removed folder must never look like a checkpoint.
                with contextlib.suppress(OSError):  # the next one that is saved removes it
                    os.rename(folder, folder.with_name(f"{folder.name}.del"))
        self._clear()

    def _steps(self) -> list[int]:
        return sorted(int(m[1]) for path in self.root.iterdir() if (m := NAME.fullmatch(path.name)))

    def _clear(self) -> None:
        for path in self.root.iterdir():
            if path.suffix == ".del" or path.suffix.startswith(".tmp-"):
                shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> dict[str, Any]:
    """Put a verified checkpoint's weights, their average and optimizer state into these; gives back trainer.json.

    A checkpoint without an average starts one at its weights. Every tensor is matched by name and shape, the
    optimizer's also by dtype. Raises RuntimeError or ValueError for what does not match.
    """
    state: dict[str, Any] = json.loads((folder / "trainer.json").read_text())
    if state["format"] != FORMAT:
        raise ValueError(f"{folder} has format {state['format']}; this version reads format {FORMAT}")
    load_model(unwrap(model), folder / WEIGHTS_FILE, strict=True)
    if average is not None:
        average.take_over()
    _go_on_from(folder, unwrap(model))
    tensors = load_file(folder / "optimizer.safetensors")
    names = {parameter: name for name, parameter in unwrap(model).named_parameters()}
    loaded: dict[int, dict[str, torch.Tensor]] = {}
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        name = names[parameter]
        moments = {key.rpartition("/")[2]: t for key, t in tensors.items() if key.rpartition("/")[0] == name}
        for key, tensor in moments.items():
            # load_state_dict would cast to the parameter's dtype and broadcast without a word.
            if key != "step" and (tensor.shape != parameter.shape or tensor.dtype != torch.float32):
                raise ValueError(
                    f"{folder}: {name}/{key} is {tensor.dtype} {tuple(tensor.shape)}, "
                    f"the model has float32 {tuple(parameter.shape)}"
                )
        if moments:
            loaded[i] = moments
    unknown = {key.rpartition("/")[0] for key in tensors} - set(names.values())
    if unknown:
        raise ValueError(f"{folder} has optimizer state for parameters the model lacks: {', '.join(sorted(unknown))}")
    optimizer.load_state_dict({"state": loaded, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


@contextlib.contextmanager
def _errors_of_the_disk() -> Iterator[None]:
    """safetensors tells them in words: here they become the OSError they are."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)|code: (\d+)", str(error))
        if found is None:
            raise
        number = int(found[1] or found[2])
        raise OSError(number, os.strerror(number)) from error


@torch.no_grad()
def _go_on_from(folder: Path, model: nn.Module) -> None:
    """Put the weights that training goes on from into the model, where they are not the model folder's own."""
    if not (folder / TRAINING_FILE).is_file():
        return
    weights = load_file(folder / TRAINING_FILE)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if {name: p.shape for name, p in parameters.items()} != {name: w.shape for name, w in weights.items()}:
        raise ValueError(f"{folder / TRAINING_FILE} does not hold the weights of this model: names or shapes differ")
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = {parameter: name for name, parameter in unwrap(model).named_parameters()}
    return {
        f"{names[parameter]}/{key}": value.detach().cpu().contiguous()
        for parameter, moments in optimizer.state.items()
        for key, value in moments.items()
    }


def _write_manifest(folder: Path, step: int) -> None:
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        fsync_file(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    for inner in (path for path in folder.iterdir() if path.is_dir()):
        fsync_folder(inner)
    manifest = {"format": FORMAT, "step": step, "files": files}
    path = folder / "MANIFEST.json"
    path.write_text(json.dumps({"manifest": manifest, "sha256": sha256_json(manifest)}, indent=2))
    fsync_file(path)
    fsync_folder(folder)
