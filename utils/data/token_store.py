"""Token ids on disk, memory-mapped, made once for each text and tokenizer; knows nothing of batches."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.config.schema import DataConfig
from utils.data.sources import Corpus, load_corpus, source_key
from utils.data.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from utils.runtime.files import cache_dir, fsync_folder, sha256_file, sha256_json, write_atomic

FORMAT = 1


@dataclass(frozen=True)
class TokenStore:
    """Training and validation ids as memory maps, with the tokenizer that made them."""

    folder: Path
    train: np.ndarray  # (N,) uint16 or uint32
    val: np.ndarray  # (M,)
    tokenizer: Tokenizer
    info: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hash of ids and tokenizer: equal means the same examples."""
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

    def bytes_per_token(self) -> float:
        """UTF-8 bytes of validation text per token: loss / (this x ln 2) is bits per byte."""
        return float(self.info["val_bytes"]) / len(self.val)


def open_store(config: DataConfig) -> TokenStore:
    """The ids for `config`, from the cache or made now.

    Raises FileNotFoundError or ValueError when the text cannot be used.
    """
    kind = f"{config.tokenizer}{config.vocab_size}" if config.tokenizer == "bpe" else config.tokenizer
    folder = cache_dir() / "tokens" / f"{kind}-{source_key(config)[:32]}"
    store = _load(folder)
    if store is None:
        corpus = load_corpus(config)
        tokenizer = build_tokenizer(config.tokenizer, corpus.train, config.vocab_size)
        _write(folder, corpus, tokenizer)
        store = _load(folder)
        if store is None:
            raise OSError(f"{folder} does not read back as it was written: is the disk failing?")
    _check_length(store, config.seq_len)
    return store


def _check_length(store: TokenStore, seq_len: int) -> None:
    tokens = len(store.train)
    if tokens < seq_len + 1:
        raise ValueError(
            f"the training text has {tokens:,} tokens and one example needs data.seq_len + 1 = {seq_len + 1:,}: "
            f"lower data.seq_len to {max(1, tokens // 2):,} or less, or add text"
        )
    if len(store.val) < 2:
        raise ValueError(
            f"the validation text has {len(store.val)} tokens and needs at least 2: raise data.val_fraction or add text"
        )


def _write(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    except OSError as error:
        raise ValueError(f"the cache {folder.parent} cannot be written ({error.strerror}): set TBT_CACHE") from None
    try:
        kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        for name, text in (("train", corpus.train), ("val", corpus.val)):
            with (building / f"{name}.bin").open("wb") as file:
                for ids in tokenizer.encode_parts(text):
                    np.asarray(ids, dtype=kind).tofile(file)
        tokenizer.save(building)
        files = {path.name: sha256_file(path) for path in sorted(building.iterdir())}
        info = {
            "format": FORMAT,
            "dtype": np.dtype(kind).name,
            "files": files,
            "fingerprint": "-".join(digest[:16] for digest in files.values()),
            "train_characters": len(corpus.train),
            "val_characters": len(corpus.val),
            "val_bytes": len(corpus.val.encode()),
            "val_nats": corpus.val_nats,
        }
        write_atomic(building / "info.json", json.dumps({"info": info, "sha256": sha256_json(info)}, indent=2))
        with _alone_in(folder.parent):
            # Whoever is first wins; the text decides the bytes, so a second one has made the same.
            if _load(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(building, folder)
                fsync_folder(folder.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _load(folder: Path) -> TokenStore | None:
    """The store if it is whole: every file is there and has the bytes that were written."""
    try:
        wrapped = json.loads((folder / "info.json").read_text())
        info = wrapped["info"]
        if wrapped["sha256"] != sha256_json(info):
            return None
        if info["format"] != FORMAT or any(sha256_file(folder / f) != d for f, d in info["files"].items()):
            return None
        train, val = (_ids(folder / f"{part}.bin", info["dtype"]) for part in ("train", "val"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return TokenStore(folder, train, val, load_tokenizer(folder), info)


def _ids(path: Path, dtype: str) -> np.ndarray:
    """The ids of a file as a memory map; an empty file cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this block for this folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
