"""A unit of documents to a shard of ids, here or in a process of its own; knows nothing of sources and sides.

As a process (`python -m utils.data.storing.encode`) it reads frames from its standard input: 8 bytes of length and
as many of JSON. The first says how, every other one is a unit. It answers each with a line of JSON, and ends with its
input.
"""

import json
import os
import queue
import re
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.data.storing.shards import Encoded, Record, write_shard
from utils.data.tokenizing.text_pieces import pieces
from utils.data.tokenizing.tokenizer import KINDS, Tokenizer, load_tokenizer

BATCH = 1 << 18  # characters that are cut into words at once
KNOWN_WORDS = 1 << 17  # words whose ids are kept, and
KNOWN_CHARACTERS = 1 << 21  # characters of them: about 30 MB
CODES = {"uint16": "H", "uint32": "I"}
# No token of ours reaches over the start of a word: it begins with a space or a newline, if one stands before it, and
# any other white space goes with what follows. U+001C to U+001F are spaces to Python and not to the tokenizers.
SPACE, OTHER = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
WORDS = re.compile(rf"[ \n]?{OTHER}+|{SPACE}+(?=[ \n]{OTHER})|{SPACE}+{OTHER}*")


@dataclass(frozen=True)
class Manner:
    """How documents are written as ids."""

    kind: str
    """text, pairs, chat or labelled."""
    dtype: str
    """uint16 or uint32."""
    separator: tuple[int, ...] = ()
    """Ids that follow a document."""
    newline: bool = False
    """Whether the separator is a newline: left out where the document ends with one."""


class Encoder:
    """The ids of texts, as bytes, several times as fast as the library: most words came before, and are looked up."""

    def __init__(self, tokenizer: Tokenizer, dtype: str) -> None:
        self.tokenizer, self.code = tokenizer, CODES[dtype]
        self.by_word = tokenizer.origin.get("kind") in KINDS  # others may have tokens of several words
        self._known: dict[str, bytes] = {}
        self._characters = 0

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text, as `tokenizer.encode` gives them."""
        return [ids for batch in _batches(texts) for ids in self._encode(batch)]

    def pack(self, ids: Sequence[int]) -> bytes:
        """Ids as they stand in the file."""
        return array(self.code, ids).tobytes()

    def _encode(self, texts: list[str]) -> list[bytes]:
        if sum(map(len, texts)) > 2 * BATCH:  # one long text
            return [b"".join(self._encode_parts(text)) for text in texts]
        if not self.by_word:
            return [self.pack(ids) for ids in self.tokenizer.encode_batch(texts)]
        words = [WORDS.findall(text) for text in texts]
        self._learn(set().union(*words).difference(self._known))
        found = [b"".join(map(self._known.__getitem__, each)) for each in words]
        if len(self._known) > KNOWN_WORDS or self._characters > KNOWN_CHARACTERS:
            self._known.clear()
            self._characters = 0
        return found

    def _encode_parts(self, text: str) -> Iterator[bytes]:
        if not self.by_word:
            yield from map(self.pack, self.tokenizer.encode_parts(text))
            return
        for part in pieces(text, BATCH):
            yield from self._encode([part])

    def _learn(self, words: set[str]) -> None:
        new = list(words)
        for word, ids in zip(new, self.tokenizer.encode_batch(new) if new else [], strict=True):
            self._known[word] = self.pack(ids)
            self._characters += len(word)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in groups of about BATCH characters; a longer one is alone."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


class Unit:
    """Documents of one side, in the form that is sent, hashed and encoded: JSON, for nothing else is as fast."""

    def __init__(self, name: str, documents: list[Any], last: bool) -> None:
        self.name = name
        """The shard it becomes, such as 0-train/00000."""
        self.documents = documents
        """text: str; pairs: [prompt, target]; labelled: [text, class]; chat: [where, messages]."""
        self.last = last
        """Whether its last document is the last of the side."""

    def to_bytes(self) -> bytes:
        """As one frame; equal units have equal bytes."""
        words = json.dumps([self.name, self.last, self.documents], ensure_ascii=False, separators=(",", ":"))
        return words.encode("utf-8", "surrogatepass")

    @classmethod
    def from_bytes(cls, data: bytes) -> "Unit":
        """The unit `to_bytes` wrote."""
        name, last, documents = json.loads(data.decode("utf-8", "surrogatepass"))
        return cls(name, documents, last)


def encode_unit(unit: Unit, manner: Manner, encoder: Encoder) -> Encoded:
    """The ids of a unit's documents."""
    if manner.kind == "chat":
        return _encode_chats(unit.documents, manner, encoder)
    documents = [[text] for text in unit.documents] if manner.kind == "text" else unit.documents
    first, last = [document[0] for document in documents], [document[0] for document in documents]
    before, after = encoder.pack(encoder.tokenizer.prefix), encoder.pack(encoder.tokenizer.suffix)
    prompts = encoder.encode(first)
    rows = prompts
    if manner.kind == "pairs":
        last = [document[1] for document in documents]
        rows = [prompt + answer for prompt, answer in zip(prompts, encoder.encode(last), strict=True)]
    separator = encoder.pack(manner.separator)
    parts = [
        b"".join((before, row, after, b"" if manner.newline and text.endswith("\n") else separator))
        for row, text in zip(rows, last, strict=True)
    ]
    if unit.last and manner.kind == "text":  # a separator stands between documents of a running text
        parts[-1] = before + rows[-1] + after
    size = array(encoder.code).itemsize
    docs = [[len(part) // size for part in parts]]
    if manner.kind == "pairs":
        docs.append([(len(before) + len(prompt)) // size for prompt in prompts])
    elif manner.kind == "labelled":
        docs.append([document[1] for document in documents])
    text_bytes = _utf8(first) + (_utf8(last) if manner.kind == "pairs" else 0)
    return Encoded(b"".join(parts), np.array(docs, np.int64).reshape(len(docs), -1), None, text_bytes)


def _encode_chats(chats: list[tuple[str, list[dict[str, str]]]], manner: Manner, encoder: Encoder) -> Encoded:
    from utils.data.tokenizing.chat import DEFAULT_TEMPLATE, encode_chat, render, roles_of

    tokenizer = encoder.tokenizer
    ids, answers, lengths, text_bytes = [], [], [], 0
    for where, messages in chats:
        try:
            row, marks = encode_chat(messages, tokenizer)
            text = render(messages, tokenizer.chat_template or DEFAULT_TEMPLATE, roles_of(tokenizer))
        except ValueError as error:
            raise ValueError(f"{where}: {error}" if where else str(error)) from None
        text_bytes += _utf8([text])
        if row and not (manner.newline and text.endswith("\n")) and tuple(row[-1:]) != manner.separator:
            # Where the template marks no end of an answer, the separator does, and is learned with it.
            marks = [*marks, *marks[-1:] * len(manner.separator)]
            row = [*row, *manner.separator]
        ids.append(encoder.pack(row))
        answers.append(bytes(marks))
        lengths.append(len(row))
    return Encoded(b"".join(ids), np.array([lengths], np.int64), b"".join(answers), text_bytes)


def _utf8(texts: Sequence[str]) -> int:
    return sum(len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")) for text in texts)


def make_shard(folder: Path, unit: Unit, content: str, manner: Manner, encoder: Encoder) -> Record:
    """Encode a unit and write its files."""
    return write_shard(folder, unit.name, content, encode_unit(unit, manner, encoder), array(encoder.code).itemsize)


# ---- As a process ----


def first_frame(folder: Path, manner: Manner) -> bytes:
    """The frame that says where and how."""
    return json.dumps({"folder": str(folder.resolve()), "manner": asdict(manner)}).encode()


def read_frame(file: BinaryIO) -> bytes | None:
    """The next frame; None at the end."""
    length = file.read(8)
    if len(length) < 8:
        return None
    data = file.read(int.from_bytes(length, "big"))
    return data if len(data) == int.from_bytes(length, "big") else None


def main() -> None:
    """Encode what comes until the input ends, which is also how it learns that its parent was killed."""
    import hashlib

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints is not an answer
    frames: queue.Queue[bytes] = queue.Queue()
    first = read_frame(sys.stdin.buffer)
    if first is None:
        return
    threading.Thread(target=_receive, args=(frames,), daemon=True).start()
    settings = json.loads(first)
    folder = Path(settings["folder"])
    manner = Manner(**settings["manner"])
    encoder = Encoder(load_tokenizer(folder), manner.dtype)
    while True:
        data = frames.get()
        try:
            unit = Unit.from_bytes(data)
            record = make_shard(folder, unit, hashlib.sha256(data).hexdigest(), manner, encoder)
            answer: dict[str, Any] = {"name": unit.name, "record": record}
        except OSError as error:
            answer = {"errno": error.errno, "error": error.strerror, "file": error.filename}
        except Exception as error:  # the parent says it
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _receive(frames: "queue.Queue[bytes]") -> None:
    while (data := read_frame(sys.stdin.buffer)) is not None:
        frames.put(data)
    os._exit(0)  # nobody waits for what is not done


if __name__ == "__main__":
    main()
