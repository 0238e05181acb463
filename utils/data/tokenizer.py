"""Text to token ids and back, by Hugging Face's tokenizers library; knows nothing of models or files of text."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what a char tokenizer makes of a character it never saw
PIECE = 1 << 16  # characters the library gets as one text: one call on a whole book is slow
BATCH = 16  # pieces it works on at once, on all cores


class Tokenizer:
    """A vocabulary and the way text is cut into it. Saved as `tokenizer.json`, which is all of it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def vocab_size(self) -> int:
        """Number of different ids."""
        return int(self._backend.get_vocab_size())

    @property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer as saved."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text; nothing is added to it."""
        return [token for part in self.encode_parts(text) for token in part]

    def encode_parts(self, text: str) -> Iterator[list[int]]:
        """The same ids in parts, for a text whose ids would fill the memory."""
        waiting = pieces(text)
        while batch := list(islice(waiting, BATCH)):
            for encoded in self._backend.encode_batch_fast(batch, add_special_tokens=False):
                yield encoded.ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def unknown_characters(self, text: str) -> str:
        """The characters of a text that this vocabulary cannot say, in order of first appearance."""
        if self._backend.token_to_id(UNKNOWN) is None:
            return ""
        return "".join(c for c in dict.fromkeys(text) if self._backend.token_to_id(c) is None)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`."""
        (folder / "tokenizer.json").write_text(self._backend.to_str(pretty=True), encoding="utf-8")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises FileNotFoundError, ValueError."""
    path = folder / "tokenizer.json"
    data = path.read_bytes()
    try:
        return Tokenizer(Backend.from_str(data.decode("utf-8")))
    except Exception as error:  # the library raises bare Exception for a bad file
        raise ValueError(f"{path} is not a tokenizer: {error}") from None


def build_tokenizer(kind: str, text: str, vocab_size: int = 0) -> Tokenizer:
    """The tokenizer `data.tokenizer` names, made for this training text: char, byte or bpe.

    `vocab_size` is the most tokens a bpe may have; 256 of them are the bytes, so no text is unknown to it.
    """
    return {"char": _char, "byte": _byte, "bpe": _bpe}[kind](text, vocab_size)


def tokens_needed(task: str, vocab_size: int) -> int:
    """Rows a model needs for a tokenizer of `vocab_size` tokens: a masked one needs a row for the mask, the last."""
    return vocab_size + (task == "masked")


def pieces(text: str) -> Iterator[str]:
    """The text in parts of at most PIECE characters, cut before a word, where no token reaches over the cut.

    A text without single spaces is cut anywhere: the ids are right all the same, but some tokens are shorter.
    """
    start = 0
    while len(text) - start > PIECE:
        space = text.rfind(" ", start + 1, start + PIECE)
        # A run of spaces is one pre-token; only a space between two words is a safe place.
        while space > start and (text[space - 1].isspace() or text[space + 1].isspace()):
            space = text.rfind(" ", start + 1, space)
        end = space if space > start else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def _char(text: str, _vocab_size: int) -> Tokenizer:
    vocabulary = {character: i for i, character in enumerate(sorted(set(text) | {UNKNOWN}))}
    backend = Backend(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return Tokenizer(backend)


def _byte(_text: str, _vocab_size: int) -> Tokenizer:
    return Tokenizer(_byte_level(models.BPE(_byte_vocabulary(), []), use_regex=False))


def _bpe(text: str, vocab_size: int) -> Tokenizer:
    # Byte-level, as in GPT-2: a word with the space before it becomes one token if it comes often enough.
    backend = _byte_level(models.BPE(), use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(pieces(text), trainer)
    return Tokenizer(backend)


def _byte_level(model: models.Model, use_regex: bool) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_vocabulary() -> dict[str, int]:
    # The library writes bytes as printable characters: those that are printable as themselves, the
    # other 68 as the characters from 256 on (Radford et al. 2019, GPT-2). Here id = value of the byte.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    other = (chr(256 + i) for i in range(256 - len(printable)))
    return {chr(byte) if byte in printable else next(other): byte for byte in range(256)}
