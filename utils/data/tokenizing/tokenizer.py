"""Text to token ids and back, by Hugging Face's tokenizers library; knows nothing of models or files of text."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from utils.data.tokenizing.round_trip import Loss, count_loss
from utils.data.tokenizing.text_pieces import PIECE, pieces, without_surrogates
from utils.data.tokenizing.train_tokenizer import (
    END,
    KINDS,
    TRAINED,
    UNKNOWN,
    byte_vocabulary,
    suggest_vocab_size,
    train_backend,
)

__all__ = [
    "END", "KINDS", "PIECE", "TRAINED", "UNKNOWN", "Loss", "Tokenizer", "build_tokenizer", "count_loss",
    "load_tokenizer", "pieces", "suggest_vocab_size", "tokens_needed",
]  # fmt: skip

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
ROLES_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
BATCH = 16  # pieces the library works on at once, on all cores
KEPT = ("chat_template", "model_max_length", "padding_side", "model_input_names")
ROLES = ("bos", "eos", "pad", "mask", "cls", "sep", "unk")
# What a special token is for, where a tokenizer comes without a tokenizer_config.json to say so.
PROBE = (
    "Hello world, it's 12 o'clock! New lines;\n\n\tÉTÉ 漢字 naïve (don't) a b\r\n  c d e\u0301 "
    "stop. 3.14 x=1 <s> ▁w ##x 😀 end"
)  # one text of every kind of place where a token could reach over a cut
USUAL = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>"),
    "eos": ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>"),
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "unk": ("<unk>", "[UNK]"),
}


def _in_word(character: str) -> bool:
    """Whether a character is part of a word that has several: not a sign, nor of a script without spaces."""
    return character.isalnum() and not "\u3040" <= character <= "\u9fff"


class Tokenizer:
    """A vocabulary and the way text is cut into it, with the special tokens' parts to play.

    `config` is what tokenizer_config.json says: the roles of special tokens, the chat template. Where it gives no
    roles, tokens with the usual names have them. `origin` says how the tokenizer came to be.
    """

    def __init__(self, backend: Backend, config: dict[str, Any] | None = None, origin: dict[str, Any] | None = None):
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # "<|endoftext|>" in a text is text, wherever the text came from
        self._backend = backend
        self.config = dict(config or {})
        self.origin = dict(origin or {})

    @cached_property
    def vocab_size(self) -> int:
        """The largest id, plus one: the rows a model needs."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)

    @property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer as saved."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Id of each special token by its text, in order of id."""
        added = sorted(self._backend.get_added_tokens_decoder().items())
        return {token.content: i for i, token in added if token.special}

    @property
    def chat_template(self) -> str:
        """The jinja template that writes its chats as text; "" if it has none."""
        found = self.config.get("chat_template") or ""
        if isinstance(found, list):  # several by name
            named = {str(each.get("name")): each.get("template") for each in found if isinstance(each, dict)}
            found = named.get("default") or next(iter(named.values()), "")
        return str(found)

    def special(self, role: str) -> str:
        """Text of the special token with this role (bos, eos, pad, mask, cls, sep, unk); "" if there is none."""
        named = self.config.get(f"{role}_token")
        if isinstance(named, dict):
            named = named.get("content")
        if named and self._backend.token_to_id(str(named)) is not None:
            return str(named)
        if any(f"{other}_token" in self.config for other in ROLES):
            return ""
        return next((token for token in USUAL[role] if token in self.special_tokens), "")

    def _id(self, role: str) -> int | None:
        token = self.special(role)
        return self._backend.token_to_id(token) if token else None

    @property
    def end_id(self) -> int | None:
        """Id of the token that ends a text; None if there is none."""
        return self._id("eos")

    @property
    def pad_id(self) -> int | None:
        """Id of the token that fills up a row; None if there is none."""
        return self._id("pad")

    @property
    def mask_id(self) -> int | None:
        """Id of the token that hides another; None if there is none."""
        return self._id("mask")

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins a text; None if there is none."""
        return self._id("bos")

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        plain = self._backend.encode("a", add_special_tokens=False).ids
        full = self._backend.encode("a", add_special_tokens=True).ids
        for i in range(len(full) - len(plain) + 1):
            if plain and full[i : i + len(plain)] == plain:
                return full[:i], full[i + len(plain) :]
        return [], []

    @property
    def prefix(self) -> list[int]:
        """Ids its post-processor puts before a text, such as [CLS]."""
        return list(self._around[0])

    @property
    def suffix(self) -> list[int]:
        """Ids its post-processor puts after a text, such as [SEP]."""
        return list(self._around[1])

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Nothing is added to it, names of special tokens in it are ordinary text, and a lone surrogate,
        which UTF-8 cannot hold, is read as U+FFFD."""
        return [token for part in self.encode_parts(text) for token in part]

    def encode_parts(self, text: str) -> Iterator[list[int]]:
        """The same ids in parts, for a text whose ids would fill the memory."""
        waiting = self._pieces(text)
        while batch := list(islice(waiting, BATCH)):
            yield from self._encode(batch)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, as `encode` gives them, on all cores."""
        cut = [list(self._pieces(text)) for text in texts]
        found = iter(self._encode([part for parts in cut for part in parts]))
        rows = []
        for parts in cut:
            row = next(found)
            for _ in parts[1:]:
                row += next(found)
            rows.append(row)
        return rows

    def encode_spans(self, text: str) -> Iterator[tuple[int, int, int]]:
        """The same ids, each with the characters of the text it stands for: (id, start, end)."""
        start = 0
        for part in self._pieces(without_surrogates(text)):
            start += text.startswith(" ", start) and not part.startswith(" ")  # the space a cut left out
            encoded = self._backend.encode(part, add_special_tokens=False)
            for token, (first, last) in zip(encoded.ids, encoded.offsets, strict=True):
                yield token, start + first, start + last
            start += len(part)

    def _encode(self, parts: list[str]) -> list[list[int]]:
        try:
            encoded = self._backend.encode_batch_fast(parts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # rare, so that the usual text is not looked through for it
            encoded = self._backend.encode_batch_fast(list(map(without_surrogates, parts)), add_special_tokens=False)
        return [each.ids for each in encoded]

    def _pieces(self, text: str, size: int = PIECE) -> Iterator[str]:
        """The text in parts whose ids, one after the other, are the ids of the text."""
        if len(text) <= size or self._cut == "never":
            return iter((text,))
        parts = pieces(text, size, anywhere=self._ours)
        if self._cut == "before":
            return parts
        return (part if i == 0 else part[1:] for i, part in enumerate(parts))

    @property
    def _ours(self) -> bool:
        return self.origin.get("kind") in KINDS

    @cached_property
    def _cut(self) -> str:
        """Where a long text may be cut: "before" a space; "at" one, which is left out, since this tokenizer puts one
        before every text; or "never". Ours are made for the first; others are tried."""
        if self._ours:
            return "before"
        whole = self._backend.encode(PROBE, add_special_tokens=False).ids
        parts = list(pieces(PROBE, 24, anywhere=False))
        for name, cut in (("before", parts), ("at", [parts[0], *(part[1:] for part in parts[1:])])):
            if [token for ids in self._encode(cut) for token in ids] == whole:
                return name
        return "never"

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def token_text(self, token: int) -> str:
        """How one token reads, for people: half a character as \\xe2, a space kept; "" for an id it does not have."""
        written = self._backend.id_to_token(token)
        if written is None or written in self.special_tokens:
            return written or ""
        text = self.decode([token])
        if UNKNOWN in text and written != UNKNOWN:
            known = byte_vocabulary()
            if all(character in known for character in written):
                return bytes(known[character] for character in written).decode("utf-8", "backslashreplace")
            return written
        if written != text and written.startswith("▁") and not text.startswith(" "):
            return f" {text}"  # a decoder drops the space before a text
        return text

    def known_ids(self) -> list[int]:
        """Every id that stands for a token, in order; a vocabulary may have holes."""
        return sorted(set(self._backend.get_vocab(with_added_tokens=True).values()))

    @property
    def unknown_id(self) -> int | None:
        """Id of what stands for everything the vocabulary cannot say; None if it can say everything."""
        token = getattr(self._backend.model, "unk_token", None) or self.special("unk")
        return None if not token or token in (END, "") else self._backend.token_to_id(token)

    def unknown_characters(self, text: str) -> str:
        """The characters of a text that this vocabulary cannot say, in order of first appearance."""
        if self._backend.token_to_id(UNKNOWN) is None:
            return ""
        return "".join(c for c in dict.fromkeys(text) if self._backend.token_to_id(c) is None)

    def begins_word(self) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens begin a word, and which end inside one: two bool (V,).

        Token i of a text starts a word if it begins one (with a space or a sign), or if the token before it does not
        end inside a word (in a letter or digit). Each character of a script without spaces is a word.
        """
        mark = getattr(self._backend.model, "continuing_subword_prefix", None) or ""
        begins, inside = np.ones(self.vocab_size, dtype=bool), np.zeros(self.vocab_size, dtype=bool)
        for token in range(self.vocab_size):
            written, text = self._backend.id_to_token(token), self.token_text(token)
            if not text or written in self.special_tokens:
                continue
            if mark:  # BERT's ##: every other token begins a word
                begins[token], inside[token] = not text.startswith(mark), True
            else:
                # A space by itself leads into the word after it.
                begins[token], inside[token] = not _in_word(text[0]), _in_word(text[-1]) or text[-1] == " "
                broken = UNKNOWN in self.decode([token]) and written != UNKNOWN
                if broken and text.startswith(("\\x", "<0x")):  # bytes of a letter, most likely
                    begins[token] = False
                inside[token] |= broken
        return begins, inside

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` reads too."""
        (folder / TOKENIZER_FILE).write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        text = json.dumps(self._config_to_save(), indent=2, ensure_ascii=False, sort_keys=True)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    def _config_to_save(self) -> dict[str, Any]:
        # A class of its own might cut text in another way than tokenizer.json says, or run somebody's code.
        usual = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        roles = {f"{role}_token": token for role in ROLES if (token := self.special(role))}
        kept = {key: self.config[key] for key in KEPT if key in self.config}
        return {**usual, **roles, **kept, "origin": self.origin}


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder: `tokenizer.json`, and what the files beside it say of roles and chats.

    Raises FileNotFoundError, or ValueError naming a file that is damaged.
    """
    path = folder / TOKENIZER_FILE
    data = path.read_bytes()
    try:
        backend = Backend.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for a bad file
        raise ValueError(f"{path} is not a tokenizer: {error}") from None
    config = _object(folder / ROLES_FILE) | _object(folder / CONFIG_FILE)
    template = folder / TEMPLATE_FILE
    if template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    origin = config.pop("origin", None)
    return Tokenizer(backend, config, origin if isinstance(origin, dict) else {})


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object {{...}}")
    return content


def build_tokenizer(
    kind: str, texts: str | Iterable[str], vocab_size: int = 0, special_tokens: Sequence[str] = ()
) -> Tokenizer:
    """A tokenizer made for these training texts.

    Arguments:
        kind: char, byte, bpe, wordpiece or unigram.
        texts: read once, one after the other; the caller bounds them.
        vocab_size: the most tokens a trained one may have, special ones and 256 bytes among them; 0 = what suits it.
        special_tokens: besides `<|endoftext|>`, for the trained kinds; char and byte have none and write them as text.

    Raises ValueError for an unknown kind, a vocabulary too small, or a special token that text could contain.
    """
    backend = train_backend(kind, [texts] if isinstance(texts, str) else texts, vocab_size, special_tokens)
    config = {"eos_token": END} if kind in TRAINED else {}
    return Tokenizer(backend, config, {"kind": kind})


def tokens_needed(task: str, vocab_size: int) -> int:
    """Rows a model needs for a tokenizer of `vocab_size` tokens: a masked one needs a row for the mask, the last."""
    return vocab_size + (task == "masked")
