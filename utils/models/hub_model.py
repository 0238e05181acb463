"""A transformers folder (config.json, *.safetensors) to an adapted model: runs none of its code, asks no network."""

import json
from pathlib import Path
from typing import Any

import torch

from utils.models.adapter import AdaptedModel, adapt
from utils.models.source import CONFIG_FILE
from utils.runtime.randomness import derive_seed

# The end of a class's name -> the front door of transformers that builds it, and our word for what it does.
DOORS = (
    ("ForSequenceClassification", "AutoModelForSequenceClassification", "classification"),
    ("ForConditionalGeneration", "AutoModelForSeq2SeqLM", "seq2seq"),
    ("ForMaskedLM", "AutoModelForMaskedLM", "masked"),
    ("ForCausalLM", "AutoModelForCausalLM", "causal"),
    ("LMHeadModel", "AutoModelForCausalLM", "causal"),
)


def load_hub_folder(folder: Path, seed: int = 0, pretrained: bool = True) -> AdaptedModel:
    """The model of a transformers folder, on the CPU, in training mode.

    Arguments:
        folder: holds config.json, and *.safetensors where `pretrained`.
        seed: of the weights where not `pretrained`: a pure function of config and seed. torch's global random state
            is as it was.
        pretrained: whether the weights are the folder's; otherwise they are drawn as the config says.

    Raises ValueError: transformers is missing, a file is missing or damaged, the config asks for code of its own or
    for an architecture that is no language model or classifier; ExportError where the model cannot be adapted.
    """
    folder = Path(folder)
    config = _read(folder)
    door, task = _door(config, folder)
    if pretrained and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has no *.safetensors: only that format is read, for others can hold code; convert the weights, "
            "or start from random ones (pretrained=False)"
        )
    try:
        import transformers
    except ImportError as error:
        raise ValueError("a Hub model needs transformers: pip install transformers") from error

    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "init"))  # torch.manual_seed would also reseed the GPUs
        try:
            plan = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            auto = getattr(transformers, door)
            if pretrained:
                model = auto.from_pretrained(
                    folder, config=plan, trust_remote_code=False, use_safetensors=True, local_files_only=True,
                    dtype=torch.float32,
                )  # fmt: skip
            else:
                model = auto.from_config(plan, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds for a bad folder, some without a common base
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{folder}: transformers cannot build it: {first}") from error
    return adapt(model.float().train(), plan.to_dict(), task)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: a transformers folder holds {CONFIG_FILE} and *.safetensors") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not an object {{...}}")
    return config


def _door(config: dict[str, Any], folder: Path) -> tuple[str, str]:
    if config.get("auto_map"):
        names = ", ".join(map(str, config["auto_map"]))
        raise ValueError(
            f"{folder / CONFIG_FILE} asks for code of its own (auto_map: {names}), which is never run: choose a model "
            "whose architecture is part of transformers"
        )
    architectures = config.get("architectures") or []
    for name in architectures:
        for ending, door, task in DOORS:
            if str(name).endswith(ending):
                return door, task
    endings = ", ".join(ending for ending, _, _ in DOORS)
    raise ValueError(
        f"{folder / CONFIG_FILE} names architectures {architectures}, but only those that end in {endings} can be used"
    )
