"""The kinds of model that can be built; knows nothing of files, seeds or tokenizers."""

from torch import nn

from utils.config.schema import ModelShape
from utils.models.bdh import BDH
from utils.models.gpt import GPT
from utils.models.llama import Llama

KINDS: dict[str, type[nn.Module]] = {"gpt": GPT, "llama": Llama, "bdh": BDH}


def build_model(kind: str, shape: ModelShape) -> nn.Module:
    """A new model; its weights are drawn from torch's global generator (`load_model` draws from a seed).

    Its `forward` takes (B, T) int64 token ids and returns (B, T, V) logits.

    Raises ValueError if `kind` is unknown or `shape.vocab_size` is 0, which only a tokenizer can fill.
    """
    if kind not in KINDS:
        raise ValueError(f"model.kind={kind} is not known: choose one of {', '.join(sorted(KINDS))}")
    if shape.vocab_size == 0:
        raise ValueError("model.shape.vocab_size=0 means the tokenizer's: set it, or use load_model")
    return KINDS[kind](shape)
