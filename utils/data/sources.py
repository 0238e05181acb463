"""Where text comes from: a training part and a validation part; knows nothing of tokens."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.config.schema import DataConfig
from utils.data import stories, story_words

VAL_STORIES = 1_000_000_000  # the number of the first validation story: no training set reaches it


@dataclass(frozen=True)
class Corpus:
    """Text in two parts that share nothing. `val_nats` is -log p(val), exact, where the source knows p."""

    train: str
    val: str
    val_nats: float | None = None


def source_key(config: DataConfig) -> str:
    """What the text is, as a hash: of the files' bytes, or of the program that writes the stories.

    Raises as `load_corpus` does for files that are missing or cannot be read.
    """
    if config.source == "stories":
        program = [Path(path).read_bytes() for path in (stories.__file__, story_words.__file__)]
        words = json.dumps([config.size, config.seed, config.val_fraction]).encode()
    else:
        program = [_read(path) for path in text_files(Path(config.path))]
        words = json.dumps([config.val_fraction]).encode()
    digests = [hashlib.sha256(part).hexdigest() for part in (*program, words)]
    return hashlib.sha256("/".join(digests).encode()).hexdigest()


def load_corpus(config: DataConfig) -> Corpus:
    """The text `config` names, split.

    Raises FileNotFoundError, or ValueError naming the file and the offset of what is not UTF-8 text.
    """
    if config.source == "stories":
        val_size = round(config.size * config.val_fraction)
        val = stories.write_stories(val_size, config.seed, start=VAL_STORIES)
        train = stories.write_stories(config.size - val_size, config.seed)
        return Corpus(train, val, stories.story_nats(val))
    text = "\n".join(read_text(path) for path in text_files(Path(config.path)))
    if not text.strip():
        raise ValueError(f"data.path={config.path} is empty: there is no text to learn from")
    return Corpus(*split(text, config.val_fraction))


def text_files(path: Path) -> list[Path]:
    """The file itself, or every .txt and .md below a folder, in order of name."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"data.path={path}: no such file or folder")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in (".txt", ".md") and file.is_file())
    if not found:
        raise FileNotFoundError(
            f"data.path={path} holds no .txt or .md file; to read a file of another ending, name it"
        )
    return found


def read_text(path: Path) -> str:
    """A file's text, exactly: only a byte order mark is dropped. Raises ValueError if it is not UTF-8."""
    data = _read(path)
    for offset, byte in _not_text(data):
        raise ValueError(
            f"{path}: not UTF-8 text: byte 0x{byte:02x} at offset {offset:,}. "
            "Is it a binary file, or text in another encoding? `iconv -t UTF-8` converts text."
        )
    return data.decode("utf-8-sig")


def split(text: str, val_fraction: float) -> tuple[str, str]:
    """Cut the last `val_fraction` off, at the end of a line where there is one near."""
    cut = round(len(text) * (1 - val_fraction))
    line_end = text.find("\n", cut, cut + max(1, (len(text) - cut) // 2))
    cut = line_end + 1 if line_end >= 0 else cut
    return text[:cut], text[cut:]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except PermissionError:
        raise ValueError(f"{path}: may not be read by this user (permission denied)") from None


def _not_text(data: bytes) -> Iterator[tuple[int, int]]:
    """Offset and value of the first byte that cannot be text. A zero byte is UTF-16 or binary, not text."""
    try:
        data.decode("utf-8")
        end = len(data)
    except UnicodeDecodeError as error:
        end = error.start
    zero = data.find(b"\0", 0, end)
    if zero >= 0:
        yield zero, 0
    elif end < len(data):
        yield end, data[end]
