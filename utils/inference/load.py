"""A trained model and its tokenizer, by whatever a person calls them: a run, a checkpoint, a folder, a preset."""

from pathlib import Path

from torch import nn

from utils.config.load import load_config, preset_names
from utils.config.schema import RunConfig
from utils.data.token_store import open_store
from utils.data.tokenizer import Tokenizer, load_tokenizer
from utils.models.folder import CONFIG_FILE, load_model_folder
from utils.models.load import load_model
from utils.runs.checkpoints import find_checkpoint
from utils.runs.folder import open_run
from utils.runtime.device import pick_device

PREVIEW_VOCAB = 256  # tokens; what a preset's model is built with before any text was seen, if nothing says more


def model_folder(path: Path, checkpoint: str = "best") -> Path:
    """The model folder itself, or that of a run's checkpoint. Raises FileNotFoundError."""
    if (path / CONFIG_FILE).is_file():
        return path
    return find_checkpoint(open_run(path).checkpoints, checkpoint)


def load_for_inference(path: Path, checkpoint: str = "best") -> tuple[nn.Module, Tokenizer]:
    """The trained model of a run or model folder, in eval mode on the fastest device, and its own tokenizer."""
    folder = model_folder(path, checkpoint)
    model, _ = load_model_folder(folder, pick_device())
    return model.eval(), load_tokenizer(folder)


def open_model(name: str) -> tuple[nn.Module, str]:
    """A model to look at, not yet trained if `name` is a preset: (model on the CPU, what it is).

    Raises FileNotFoundError naming presets and runs where there is nothing of that name.
    """
    if name in preset_names():
        preset = load_config(name)
        known = preset.data.vocab_size if preset.data.tokenizer == "bpe" else PREVIEW_VOCAB
        vocab_size = preset.model.shape.vocab_size or known
        return load_model(preset.model, vocab_size), f"{name} ({preset.model.kind}, {vocab_size} tokens)"
    try:
        model, config = load_model_folder(model_folder(Path(name)))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; presets: {', '.join(preset_names())}") from None
    return model, f"{name} ({config.kind})"


def untrained_model(config: RunConfig) -> nn.Module:
    """The model that a run with these settings begins with, its vocabulary taken from the run's own text."""
    return load_model(config.model, open_store(config.data).tokenizer.vocab_size, config.train.seed)
