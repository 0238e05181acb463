"""The front door: a config and a vocabulary in, a new model out; the same seed, the same weights."""

import torch
from torch import nn

from utils.config.schema import ModelConfig
from utils.models.registry import build_model
from utils.runtime.randomness import derive_seed


def resolve_shape(config: ModelConfig, vocab_size: int) -> ModelConfig:
    """The config with its vocabulary filled in: `vocab_size` is the tokenizer's, in tokens.

    A larger table than the tokenizer needs is kept (some round it up for speed).
    Raises ValueError if the table is smaller, for then some tokens would have no row.
    """
    rows = config.shape.vocab_size
    if rows == 0:
        return config.model_copy(update={"shape": config.shape.model_copy(update={"vocab_size": vocab_size})})
    if rows < vocab_size:
        raise ValueError(
            f"model.shape.vocab_size={rows} is smaller than the tokenizer's vocabulary of {vocab_size}: "
            f"set it to 0 (exactly the tokenizer's) or to at least {vocab_size}"
        )
    return config


def load_model(config: ModelConfig, vocab_size: int, seed: int = 0) -> nn.Module:
    """A new model on the CPU, in fp32; its weights are a pure function of the three arguments.

    They are drawn on the CPU wherever the model will live, so that they are the same everywhere; torch's
    global random state is as it was. Raises ValueError if the vocabulary does not fit (see `resolve_shape`).
    """
    config = resolve_shape(config, vocab_size)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "init"))  # torch.manual_seed would also reseed the GPUs
        return build_model(config.kind, config.shape)
