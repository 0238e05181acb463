"""A trained model and its tokenizer, by whatever a person calls them: a run, a checkpoint, a folder, a preset."""

from pathlib import Path

from torch import nn

from utils.config.load import load_config
from utils.config.schema import ModelConfig, RunConfig
from utils.data.storing.token_store import open_store
from utils.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from utils.models.folder import build_any, load_model_folder
from utils.models.load import load_model
from utils.runs.model_folder import model_folder
from utils.runtime.device import pick_device

PREVIEW_VOCAB = 256  # tokens; what a preset's model is built with before any text was seen, if nothing says more


def load_for_inference(path: Path, checkpoint: str = "best") -> tuple[nn.Module, Tokenizer]:
    """The trained model of a run or model folder, in eval mode on the fastest device, and its own tokenizer."""
    folder = model_folder(path, checkpoint)
    model, _ = load_model_folder(folder, pick_device())
    return model.eval(), load_tokenizer(folder)


def open_model(kind: str, where: str) -> nn.Module:
    """A model to look at, on the CPU: `kind` is preset, folder (a model folder of ours), builder or hub.

    `where` is the preset's name or the folder. A preset's model is new, its vocabulary the preset's own; the others
    have the weights they come with. An export's code runs in this process. Raises ValueError for what cannot be built.
    """
    if kind == "preset":
        preset = load_config(where)
        known = preset.data.vocab_size if preset.data.tokenizer in ("auto", "bpe") else PREVIEW_VOCAB
        return load_model(preset.model, preset.model.shape.vocab_size or known)
    if kind == "folder":
        return load_model_folder(Path(where))[0]
    return build_any(ModelConfig(kind=kind, ref=where), Path(where), pretrained=True)  # type: ignore[arg-type]


def untrained_model(config: RunConfig) -> nn.Module:
    """The model that a run with these settings begins with, its vocabulary taken from the run's own text."""
    return load_model(config.model, open_store(config.data).tokenizer.vocab_size, config.train.seed)
