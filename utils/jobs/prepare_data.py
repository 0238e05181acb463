"""A run's text before its worker starts: pinned to what the network says now, or to what the run began with. No torch.

A worker has no network. Which commit of a dataset, which of its splits, which tokenizer: all that is settled here, and
written into the run's settings.
"""

from pathlib import Path
from typing import Any

from utils.config.schema import DataConfig, MixturePart
from utils.data.reading.sources import pin
from utils.data.tokenizing.pretrained_tokenizer import COMMIT, WORDS, has_tokenizer, pin_tokenizer

PINNED = ("config", "revision", "val_from", "test_from")


def prepare_data(data: DataConfig, own: Path | None, known: DataConfig | None) -> tuple[DataConfig, tuple[str, ...]]:
    """The settings with everything settled that only the network or the model knows, and each change in words.

    `own` is the folder of a model from elsewhere, whose tokenizer is the one its weights understand. `known` are the
    settings of the run, if it is gone on with: it keeps to what it has. Raises ValueError, FileNotFoundError.
    """
    if known is not None:
        data = _as_known(data, known)
    data, notes = pin(data)
    if data.tokenizer == "auto":
        name = "model" if own is not None and has_tokenizer(own) else "bpe"
        if name == "model":
            notes += ("data.tokenizer=model: the one the model came with",)
        data = data.model_copy(update={"tokenizer": name})
    if data.tokenizer not in WORDS:
        revision = pin_tokenizer(data.tokenizer, data.tokenizer_revision)
        data = data.model_copy(update={"tokenizer_revision": revision})
    return data, notes


def _as_known(data: DataConfig, known: DataConfig) -> DataConfig:
    """The settings with what is left open in them as the run has it."""
    updates = _open(data, known)
    if len(data.mixture) == len(known.mixture):
        pairs = zip(data.mixture, known.mixture, strict=True)
        updates["mixture"] = [part.model_copy(update=_open(part, was)) for part, was in pairs]
    if data.tokenizer == "auto":
        updates["tokenizer"] = known.tokenizer
    if data.tokenizer in ("auto", known.tokenizer) and not COMMIT.fullmatch(data.tokenizer_revision):
        updates["tokenizer_revision"] = known.tokenizer_revision
    return data.model_copy(update=updates)


def _open(given: MixturePart | DataConfig, known: MixturePart | DataConfig) -> dict[str, Any]:
    """What `known` says where `given` leaves it open; nothing where they are of different datasets.

    A branch or tag is open, too: for a run it is the commit that it meant when the run began.
    """
    fields = type(given).model_fields
    if given.source != known.source or given.name.split("/")[-1] != known.name.split("/")[-1]:
        return {}
    updates = {name: getattr(known, name) for name in PINNED if name in fields and not getattr(given, name)}
    if given.revision and not COMMIT.fullmatch(given.revision):
        updates["revision"] = known.revision
    if "/" not in given.name:  # one of the Hub's first datasets, which have moved to an owner since
        updates["name"] = known.name
    return updates
