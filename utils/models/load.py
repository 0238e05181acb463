"""The front door: a config and a vocabulary in, a new model out; the same seed, the same weights."""

import math
from pathlib import Path

import torch
from torch import nn

from utils.config.schema import BUILT_IN, ModelConfig
from utils.models.folder import build_any, load_model_folder, read_config
from utils.models.registry import build_model
from utils.models.source_files import SOURCE
from utils.runtime.randomness import derive_seed


def resolve_shape(config: ModelConfig, vocab_size: int) -> ModelConfig:
    """The config with its vocabulary filled in: `vocab_size` is the tokenizer's, in tokens.

    A larger table than the tokenizer needs is kept, and `shape.pad_vocab_to` rounds up one that is not given; a model
    from elsewhere has its own. Raises ValueError if the table is smaller, for then some tokens would have no row.
    """
    shape = config.shape
    if config.kind not in BUILT_IN:
        return config
    if shape.vocab_size == 0:
        rows = shape.pad_vocab_to * math.ceil(vocab_size / shape.pad_vocab_to)
        return config.model_copy(update={"shape": shape.model_copy(update={"vocab_size": rows})})
    if shape.vocab_size < vocab_size:
        raise ValueError(
            f"model.shape.vocab_size={shape.vocab_size} is smaller than the tokenizer's vocabulary of {vocab_size}: "
            f"set it to 0 (exactly the tokenizer's) or to at least {vocab_size}"
        )
    return config


def load_model(config: ModelConfig, vocab_size: int, seed: int = 0, source: Path | None = None) -> nn.Module:
    """A new model on the CPU, in fp32; its weights are a pure function of the arguments.

    They are drawn on the CPU wherever the model will live, so that they are the same everywhere; torch's
    global random state is as it was. `source` holds the files of a model from elsewhere (kind builder, hub or
    folder); an export's code runs in this process. Raises ValueError if the vocabulary does not fit (see
    `resolve_shape`) or the files cannot be used.
    """
    config = resolve_shape(config, vocab_size)
    key = derive_seed(seed, "init")
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)  # torch.manual_seed would also reseed the GPUs
        if config.kind in BUILT_IN:
            return build_model(config.kind, config.shape)
        if source is None:
            raise ValueError(f"model.kind={config.kind}: its files were not fetched; start it with `tbt train`")
        model = _foreign(config, source, key).float()
    if model.shape.vocab_size < vocab_size:
        raise ValueError(
            f"the model has a table of {model.shape.vocab_size} tokens and the tokenizer needs {vocab_size}: "
            "lower data.vocab_size, or choose another data.tokenizer"
        )
    return model


def _foreign(config: ModelConfig, source: Path, seed: int) -> nn.Module:
    if config.kind != "folder":
        return build_any(config, source, seed, config.pretrained)
    if config.pretrained:
        return load_model_folder(source)[0]
    return build_any(read_config(source), source / SOURCE, seed)
