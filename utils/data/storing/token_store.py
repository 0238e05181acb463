"""Token ids on disk, memory-mapped, made once for each text and tokenizer; knows nothing of batches."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from utils.config.schema import DataConfig
from utils.data.documents import SIDES
from utils.data.storing.build_store import build, store_name
from utils.data.storing.shards import read_info, tokens_of
from utils.data.storing.tokens import Tokens, joined
from utils.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from utils.runtime.files import cache_dir

Progress = Callable[[str, int, int], None]  # what is being done; how much is done; of how much (0 = unknown)


@dataclass(frozen=True)
class TokenStore:
    """The ids of a text by part and side, with the tokenizer that made them."""

    folder: Path
    tokenizer: Tokenizer
    info: dict[str, Any]
    weights: list[float]
    """Share of the training examples that each part gives, relative to the others; 1 each if nobody said."""

    def side(self, name: str, part: int | None = None) -> Tokens:
        """The ids of side train, val or test: of one part of a mixture, or of all, one after the other."""
        if name not in SIDES:
            raise ValueError(f"a store has the sides {', '.join(SIDES)}, and none called {name!r}")
        parts = range(self.info["parts"]) if part is None else [part]
        return joined([tokens_of(self.folder, self.info, i, name) for i in parts])

    @cached_property
    def train(self) -> Tokens:
        """What is learned."""
        return self.side("train")

    @cached_property
    def val(self) -> Tokens:
        """What a run is evaluated on."""
        return self.side("val")

    @cached_property
    def test(self) -> Tokens:
        """What nothing but `tbt evaluate --on test` looks at; it may be empty."""
        return self.side("test")

    @property
    def kind(self) -> str:
        """What the documents are: text, pairs, chat or labelled."""
        return str(self.info["kind"])

    @property
    def labels(self) -> list[str]:
        """The classes in order: a label is an index in this list. Empty if the documents have none."""
        return list(self.info["classes"])

    @property
    def fingerprint(self) -> str:
        """Hash of ids, documents, masks, labels and tokenizer, whatever file they came from: equal means the same."""
        return str(self.info["fingerprint"])

    @property
    def entropy_floor(self) -> float | None:
        """The least loss any model can expect on the validation text, in nats per token; None if unknown.

        It is -log p(text) of this very text under the program that wrote it, over the tokens a model has
        to predict (all but the first, which is always a newline). A model q that has not seen the text
        beats it by t nats in total with probability at most exp(-t) (Markov's inequality on q/p).
        """
        nats = self.info["val_nats"]
        return None if nats is None else float(nats) / (len(self.val) - 1)

    def warnings(self) -> list[str]:
        """What was left out while the tokens were made, or should have been, in words."""
        info, found = self.info, list[str]()
        if count := info["skipped"]["count"]:
            first = "; ".join(info["skipped"]["first"][:3])
            found.append(f"left out: {_many(count, 'row')} that could not be used; the first: {first}")
        if info["empties"]:
            found.append(f"left out: {_many(info['empties'], 'empty document')}")
        if info["left_out"]:
            why = "an earlier one" if info["made_of"]["split"]["duplicates"] == "drop" else "one of another side"
            found.append(f"left out: {_many(info['left_out'], 'document')} like {why}")
        if info["leaks"]:
            many = _many(info["leaks"], "training document")
            found.append(f"{many} like one kept for validation or test: expect a higher loss on new text")
        return found

    def bytes_per_token(self) -> float:
        """UTF-8 bytes of validation text per token: loss / (this x ln 2) is bits per byte."""
        return float(self.info["val_bytes"]) / len(self.val)


def open_store(config: DataConfig, own_tokenizer: Path | None = None, progress: Progress | None = None) -> TokenStore:
    """The ids for `config`, from the cache or made now; a build that was killed goes on where it was.

    Args:
        own_tokenizer: folder with the tokenizer of a trained model, for data.tokenizer=model.
        progress: called while they are made, at most about ten times a second.

    Raises FileNotFoundError or ValueError when the text cannot be used.
    """
    name, made_of = store_name(config, own_tokenizer)
    folder = cache_dir() / "tokens" / name
    store = store_at(folder)
    if store is None:
        build(folder, config, made_of, own_tokenizer, progress)
        store = store_at(folder)
        if store is None:
            raise OSError(f"{folder} does not read back as it was written: is the disk failing?")
    return for_settings(store, config)


def for_settings(store: TokenStore, config: DataConfig) -> TokenStore:
    """The store with the weights of the settings. Raises ValueError if it holds less than one example of theirs."""
    _check_length(store, config)
    return replace(store, weights=[part.weight for part in config.mixture] or [1.0])


def store_at(folder: Path) -> TokenStore | None:
    """The store in a folder if it is whole, every file with the bytes that were written; the text is not looked at."""
    info = read_info(folder)
    if info is None:
        return None
    return TokenStore(folder, load_tokenizer(folder), info, [1.0] * info["parts"])


def _check_length(store: TokenStore, config: DataConfig) -> None:
    """At least one example to learn and one to be evaluated on."""
    blocks = config.packing == "blocks" or (config.packing == "auto" and store.kind == "text")
    if not blocks:
        for name, side, setting in (("training", store.train, "lower"), ("validation", store.val, "raise")):
            if not side.documents:
                raise ValueError(f"there is no {name} document: {setting} data.val_fraction or add text")
        return
    tokens = len(store.train)
    if tokens < config.seq_len + 1:
        raise ValueError(
            f"the training text has {tokens:,} tokens and one example needs data.seq_len + 1 = "
            f"{config.seq_len + 1:,}: lower data.seq_len to {max(1, tokens // 2):,} or less, or add text"
        )
    if len(store.val) < 2:
        raise ValueError(
            f"the validation text has {len(store.val)} tokens and needs at least 2: raise data.val_fraction or add text"
        )


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
