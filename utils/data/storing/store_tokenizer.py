"""The tokenizer of a store: made from a bounded part of its training documents, or fetched; knows no ids on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.config.schema import DataConfig
from utils.data.documents import Document, Skipped
from utils.data.reading.sources import read_documents
from utils.data.storing.shards import WORK, are_whole, read_json, write_json
from utils.data.storing.survey import Survey
from utils.data.tokenizing.chat import CHAT_TOKENS, DEFAULT_TEMPLATE, render
from utils.data.tokenizing.pretrained_tokenizer import load_pretrained
from utils.data.tokenizing.tokenizer import (
    KINDS,
    TRAINED,
    Tokenizer,
    build_tokenizer,
    load_tokenizer,
    suggest_vocab_size,
)
from utils.runtime.files import sha256_file

# Characters that a vocabulary is learned from; more changes it little. So many for each token, between these bounds.
PER_TOKEN, LEAST, MOST = 1000, 10_000_000, 50_000_000
MIX = np.uint64(0x9E3779B97F4A7C15)
DONE = "tokenizer.json"


def tokenizer_key(config: DataConfig, own: Path | None = None) -> dict[str, Any]:
    """What decides the tokenizer, as JSON. Raises ValueError for one that is not there."""
    kind = kind_of(config)
    template = {"chat_template": config.chat_template}
    if kind in TRAINED:
        return {"kind": kind, "vocab_size": config.vocab_size, "sample": [PER_TOKEN, LEAST, MOST], **template}
    if kind in KINDS:
        return {"kind": kind, **template}
    tokenizer = load_pretrained(config.tokenizer, config.tokenizer_revision, own)
    return {"fingerprint": tokenizer.fingerprint, "origin": tokenizer.origin, "config": tokenizer.config, **template}


def kind_of(config: DataConfig) -> str:
    """The kind of tokenizer that data.tokenizer means where no model brings its own."""
    return "bpe" if config.tokenizer == "auto" else config.tokenizer


def tokenizer_for(folder: Path, config: DataConfig, survey: Survey, own: Path | None, say: Any) -> Tokenizer:
    """The tokenizer of the store being made in `folder`: kept there, made or fetched now."""
    done = folder / WORK / DONE
    if _is_done(folder, done):
        return load_tokenizer(folder)
    kind, chats = kind_of(config), survey.info["kind"] == "chat"
    if kind in KINDS:
        size = config.vocab_size or suggest_vocab_size(survey.info["characters"]["train"])
        enough = min(MOST, max(LEAST, PER_TOKEN * size))
        texts = _training_texts(kind, config, survey, enough, say) if kind != "byte" else iter(())
        tokenizer = build_tokenizer(kind, texts, size, CHAT_TOKENS if chats else ())
    else:
        tokenizer = load_pretrained(config.tokenizer, config.tokenizer_revision, own)
    if config.chat_template or (chats and not tokenizer.chat_template):
        tokenizer.config["chat_template"] = config.chat_template or DEFAULT_TEMPLATE
    tokenizer.save(folder)
    tokenizer = load_tokenizer(folder)
    write_json(done, {"files": {path.name: sha256_file(path) for path in folder.glob("*.json*") if path.is_file()}})
    return tokenizer


def _is_done(folder: Path, done: Path) -> bool:
    """Whether the whole tokenizer was written before, and is still that: another would give other ids."""
    try:
        return are_whole(folder, (read_json(done) or {})["files"])
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return False


def separator_of(tokenizer: Tokenizer, config: DataConfig, kind: str = "text") -> tuple[tuple[int, ...], bool]:
    """The ids that follow a document, and whether they are a newline, which a text may already end with.

    Nothing, where the tokenizer itself puts its end there. Before the next text is as good between running texts; an
    answer has to end with one.
    """
    end = tokenizer.end_id
    if config.separator == "end" and end is None:
        raise ValueError(
            f"data.separator=end needs a tokenizer with an end-of-text token, and data.tokenizer={config.tokenizer} "
            "has none: set data.separator=newline, or another tokenizer"
        )
    if config.separator == "nothing":
        return (), False
    if config.separator == "newline" or end is None:
        return tuple(tokenizer.encode("\n")), True
    ends = (*tokenizer.suffix[-1:], *(tokenizer.prefix[:1] if kind == "text" else ()))
    return (() if config.separator == "auto" and end in ends else (end,)), False


def _training_texts(kind: str, config: DataConfig, survey: Survey, enough: int, say: Any) -> Iterator[str]:
    """What the vocabulary is learned from: for char every character there is, for others about `enough` characters.

    Which documents are taken hangs on what they say, not on where they stand.
    """
    chosen = survey.sides == 0
    if kind != "char":
        chosen &= _sample(survey, enough)
    characters, done, seen = int(survey.characters[chosen].sum(dtype=np.int64)), 0, set[str]()
    last = int(np.flatnonzero(chosen)[-1])
    if kind == "char" and max(survey.info["by_part"].values()) > 1:
        yield "\n"  # which may stand between documents
    for i, document in enumerate(read_documents(config, Skipped())):
        if chosen[i]:
            text = _text(document, config)[:enough] if kind != "char" else _text(document, config)
            if kind == "char":
                new = set(text) - seen
                seen |= new
                text = "".join(new)
            if text:
                yield text
            done += int(survey.characters[i])
            say("learning the vocabulary", done, characters)
        if i == last:
            return


def _sample(survey: Survey, enough: int) -> np.ndarray:
    """Training documents of about `enough` characters, at least one: bool (D,)."""
    rows = np.flatnonzero(survey.sides == 0)
    # Mixed anew, for by the hash itself documents were chosen for validation.
    order = rows[np.argsort(survey.content[rows] * MIX ^ (survey.content[rows] >> np.uint64(29)), kind="stable")]
    before = np.concatenate(([0], np.cumsum(survey.characters[order], dtype=np.int64)[:-1]))
    chosen = np.zeros(len(survey.sides), bool)
    chosen[order[before < enough]] = True
    return chosen


def _text(document: Document, config: DataConfig) -> str:
    """All that a document says, as it will be written."""
    if document.messages is not None:
        text = render(document.messages, config.chat_template or DEFAULT_TEMPLATE)
        for token in CHAT_TOKENS:  # these are tokens already
            text = text.replace(token, "")
        return text
    return document.text if document.target is None else document.text + document.target
