"""The model folder: `config.json` says what to build, `model.safetensors` holds its weights.

A model from elsewhere has its own files beside them, byte for byte as published, in `source/`: model.py and
config.json of an export, config.json of a transformers model.

Plain writes; whoever needs a folder to survive a power cut (the checkpointer) syncs and renames it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch import nn

from utils.config.schema import BUILT_IN, ModelConfig
from utils.models.registry import build_model
from utils.models.source_files import SOURCE, source_files

FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside what `torch.compile` (`_orig_mod`) and data parallelism (`module`) put around it."""
    while [name for name, _ in model.named_children()] in (["_orig_mod"], ["module"]):
        (model,) = model.children()
    return model


def save_model(folder: Path, model: nn.Module, config: ModelConfig, source: Path | None = None) -> None:
    """Write the model folder, over an older one if there is one; `source` holds the files of one from elsewhere.

    The names of the weights do not depend on how the model was wrapped, and tied weights are written once.
    The shape written is the model's own, so a config whose vocab_size is still 0 (the tokenizer's) does no
    harm.
    """
    model = unwrap(model)
    if config.kind in BUILT_IN:
        config = config.model_copy(update={"shape": getattr(model, "shape", config.shape)})
    folder.mkdir(parents=True, exist_ok=True)
    if source is not None:
        (folder / SOURCE).mkdir(exist_ok=True)
        for path in source_files(source):
            shutil.copyfile(path, folder / SOURCE / path.name)
    save_weights(model, str(folder / WEIGHTS_FILE))
    told = {"kind", "shape"} if config.kind in BUILT_IN else {"kind", "ref", "revision"}
    text = json.dumps({"format": FORMAT, **config.model_dump(mode="json", include=told)}, indent=2)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def read_config(folder: Path) -> ModelConfig:
    """What `config.json` says. Raises ValueError if it is missing, damaged or of an unknown format."""
    path = _existing(folder, CONFIG_FILE)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path} is not JSON: {error}") from error
    found = content.pop("format", None) if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}, but only format {FORMAT} can be read")
    try:
        return ModelConfig.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{path} does not describe a model: {problems}") from error


def load_model_folder(folder: Path, device: str | torch.device = "cpu") -> tuple[nn.Module, ModelConfig]:
    """The model of the folder, in fp32 and in training mode as torch builds it, and what it was built from.

    torch's global random state is as it was. Raises ValueError if a file is missing or damaged, or if the
    weights are not exactly those the config asks for.
    """
    config = read_config(folder)
    path = _existing(folder, WEIGHTS_FILE)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        model = build_any(config, folder / SOURCE)
    try:
        load_weights(model, str(path), strict=True)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    except RuntimeError as error:  # how torch says that names or sizes differ
        raise ValueError(f"{path} does not fit the shape in {CONFIG_FILE}: {error}") from error
    return model.to(device), config


def build_any(config: ModelConfig, source: Path, seed: int = 0, pretrained: bool = False) -> nn.Module:
    """The model that `config` names, built in or from the files in `source`; not the weights of a checkpoint.

    For an export this RUNS its model.py: only a process that may be lost should call it (`jobs/box.py`). Raises
    ValueError (an `ExportError` for an export) with what is wrong with it.
    """
    if config.kind == "builder":
        from utils.models.adapter import load_export

        return load_export(source, seed)
    if config.kind == "hub":
        from utils.models.hub_model import load_hub_folder

        return load_hub_folder(source, seed, pretrained)
    return build_model(config.kind, config.shape)


def _existing(folder: Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(f"{path} is missing: a model folder holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    return path
