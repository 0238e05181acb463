"""Which document goes where: a table of all documents, and the side of each; knows nothing of tokens and sources."""

import json
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from utils.config.schema import DataConfig
from utils.data.documents import SIDES, Document
from utils.data.storing.near_duplicates import BANDS, Keys, Similar, keys_of, similar_documents

TRAIN, VAL, TEST = range(3)
LEFT_OUT = 3  # on no side
FREE = 255  # the source does not say which side
FIXED = {"": FREE, **{name: side for side, name in enumerate(SIDES)}}
COLUMNS = {"content": np.uint64, "characters": np.uint32, "fixed": np.uint8, "part": np.uint16}
KEYS = {"words": np.uint64, "long": np.int32, "bands": np.uint64}


@dataclass
class DocumentTable:
    """What deciding needs to know of each document, one row each in reading order.

    23 bytes a document, and 132 more for one of 32 words or more.
    """

    content: np.ndarray
    """uint64 (n,): hash of all it says."""
    characters: np.ndarray
    """uint32 (n,); 0 = nothing but white space."""
    fixed: np.ndarray
    """uint8 (n,): the side that the source itself gives it, an index in SIDES; 255 = none."""
    part: np.ndarray
    """uint16 (n,): which part of a mixture it is from."""
    keys: Keys
    """Near-duplicate keys."""
    _similar: Similar | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.content)

    def held(self) -> np.ndarray:
        """bool (n,): the source itself keeps it for validation or test."""
        return (self.fixed == VAL) | (self.fixed == TEST)

    def similar(self) -> Similar:
        """Which documents are alike, those that the source holds out counting as first; looked for once."""
        if self._similar is None:
            self._similar = similar_documents(self.content, self.keys, self.held())
        return self._similar


class TableBuilder:
    """Makes the table, a batch of documents after the other."""

    def __init__(self) -> None:
        self._made: DocumentTable | None = None
        self._used = dict.fromkeys(COLUMNS | KEYS, 0)  # rows of each column; it has room for more
        self._columns = {
            name: np.empty((0, BANDS) if name == "bands" else 0, kind) for name, kind in (COLUMNS | KEYS).items()
        }

    def add(self, documents: list[Document]) -> None:
        """Note the next documents. Batches of some MB of text are fast; how they are cut decides nothing."""
        assert self._made is None, "the table is already made"
        words = [_words(document) for document in documents]
        texts = [text.encode("utf-8", "surrogatepass") for text in words]
        keys = keys_of(texts)
        self._append(
            content=[_content(document, text) for document, text in zip(documents, texts, strict=True)],
            characters=[0 if not text or text.isspace() else min(len(text), 2**32 - 1) for text in words],
            fixed=[FIXED[document.side] for document in documents],
            part=[document.part for document in documents],
            words=keys.words,
            long=keys.long + np.int32(self._used["content"]),
            bands=keys.bands,
        )

    def table(self) -> DocumentTable:
        """The table of all documents. It takes the builder's arrays: nothing can be added after this."""
        if self._made is None:
            for name, column in self._columns.items():
                self._resize(column, self._used[name])
            keys = Keys(*(self._columns.pop(name) for name in KEYS))
            self._made = DocumentTable(**self._columns, keys=keys)
        return self._made

    def _append(self, **rows: Any) -> None:
        for name, values in rows.items():
            column, start, end = self._columns[name], self._used[name], self._used[name] + len(values)
            if end > len(column):
                self._resize(column, max(end, len(column) * 9 // 8))
            column[start:end] = values
            self._used[name] = end

    @staticmethod
    def _resize(column: np.ndarray, rows: int) -> None:
        """In place (realloc), so that there is no second copy."""
        column.resize((rows, *column.shape[1:]), refcheck=False)


def assign_sides(table: DocumentTable, config: DataConfig) -> np.ndarray:
    """The side of every document: uint8 (n,), an index in SIDES, or LEFT_OUT.

    By content: the hash of what a document says is a number in [0, 1); below data.val_fraction it is for validation,
    then for test. So a document's side depends on no other, but for these cases (data.duplicates=together): documents
    that are almost alike follow the first of them; one that is like documents of several sides, or like one that the
    source itself holds out, is left out. Only earlier documents count, so that adding text moves none. A part that has
    validation documents of its own (data.val_from) gives no others, and the same for test.

    Where the hash finds no validation document (there are few), the one with the smallest hash is it, with all that
    follow it, until one comes that is below the fraction or has a smaller hash: that document alone may change places.
    Where nothing is left to train on, it is the one with the largest. Where all are alike, the last are for validation
    nevertheless, and every one of them counts as a leak.

    By position: validation is the last data.val_fraction of each part's characters, test the stretch before it, both in
    whole documents; a document that is like one of either is left out of training.

    data.duplicates=drop keeps only the first of those that are alike (and all that the source holds out); ignore looks
    at none.

    Raises:
        ValueError: there are not two documents.
    """
    by = _by_position if config.split_by == "position" else _by_content
    sides = by(table, config)
    missing = not ((sides == TRAIN).any() and (sides == VAL).any())
    if missing and not table.held().any() and (table.characters > 0).sum() > 1:
        sides = _by_position(table, config.model_copy(update={"duplicates": "ignore"}))
    for side in (TRAIN, VAL):
        if not (sides == side).any():
            raise ValueError(_why_empty(table, sides, config))
    return sides


def count_leaks(table: DocumentTable, sides: np.ndarray) -> int:
    """How many training documents are like one of validation or test."""
    return int((_near_held(table, sides) & (sides == TRAIN)).sum())


def describe_sides(table: DocumentTable, sides: np.ndarray) -> dict[str, int]:
    """What people want to know: documents of each side and their characters, duplicates, what was left out, leaks."""
    similar = table.similar()
    words = table.characters > 0
    same = similar.copies() & words
    near = np.zeros(len(table), bool)
    near[similar.later] = True
    counts = {name: int((sides == side).sum()) for side, name in enumerate(SIDES)}
    counts |= {f"{name}_characters": int(table.characters[sides == side].sum()) for side, name in enumerate(SIDES)}
    return counts | {
        "left_out": int(((sides == LEFT_OUT) & words).sum()),
        "blank": int((~words).sum()),
        "exact_duplicates": int(same.sum()),
        "near_duplicates": int((near & ~same).sum()),
        "leaks": count_leaks(table, sides),
    }


# ---- By content ----


def _by_content(table: DocumentTable, config: DataConfig) -> np.ndarray:
    """The side that the hash gives, then duplicates, then the rescue of an empty side."""
    own = _own_sides(table, config)
    sides, leads = _follow(table, own, config)
    for empty, other, extreme in ((VAL, TRAIN, np.min), (TRAIN, VAL, np.max)):
        if (sides == empty).any():
            continue
        spare = np.unique(table.content[leads & (sides == other)])
        enough = len(spare) + (~leads & (table.fixed == other) & (sides == other)).any() > 1
        givers = leads & (sides == (other if enough else TEST))
        if givers.any():
            own[(table.fixed == FREE) & (table.content == extreme(table.content[givers]))] = empty
            sides, leads = _follow(table, own, config)
    return sides


def _own_sides(table: DocumentTable, config: DataConfig) -> np.ndarray:
    """The side that the source or else the hash gives each document, whatever the others are: uint8 (n,)."""
    sides = np.full(len(table), TRAIN, np.uint8)
    for part in np.unique(table.part):
        mine = table.part == part
        val, test = _fractions(table, mine, config)
        free = mine & (table.fixed == FREE)
        sides[free & _below(table.content, val + test)] = TEST
        sides[free & _below(table.content, val)] = VAL
    given = table.fixed != FREE
    sides[given] = table.fixed[given]
    sides[table.characters == 0] = LEFT_OUT
    return sides


def _below(content: np.ndarray, share: float) -> np.ndarray:
    """Whether a hash, read as a number in [0, 1), is below a share: bool (n,)."""
    return content < np.uint64(round(share * 2**64)) if share else np.zeros(len(content), bool)


def _fractions(table: DocumentTable, mine: np.ndarray, config: DataConfig) -> tuple[float, float]:
    """The shares of a part's free documents that are for validation and test: none where it brings its own."""
    fixed = table.fixed[mine]
    return (
        0.0 if (fixed == VAL).any() else config.val_fraction,
        0.0 if (fixed == TEST).any() else config.test_fraction,
    )


def _follow(table: DocumentTable, own: np.ndarray, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """The sides once documents follow those they are like, uint8 (n,), and which of them follow none, bool (n,)."""
    leads = (table.fixed == FREE) & (own != LEFT_OUT)
    if config.duplicates == "ignore":
        return own, leads
    similar, drop, held = table.similar(), config.duplicates == "drop", table.held()
    sides = own.copy()
    for document, earlier in similar.of_later():  # decided after all that it may follow
        if not leads[document]:
            continue
        placed = earlier[sides[earlier] != LEFT_OUT]
        if not len(placed):
            continue
        side = sides[placed[0]]
        apart = drop or held[placed].any() or (sides[placed] != side).any()
        sides[document] = LEFT_OUT if apart else side
        leads[document] = False
    copies = leads & similar.copies()
    of = similar.first[copies]
    sides[copies] = np.where(drop | held[of], LEFT_OUT, sides[of])
    leads[copies] = False
    return sides, leads


# ---- By position ----


def _by_position(table: DocumentTable, config: DataConfig) -> np.ndarray:
    """The last characters of each part for validation, those before for test, in whole documents."""
    given = table.fixed != FREE
    words = table.characters > 0
    sides = np.where(given & words, table.fixed, LEFT_OUT).astype(np.uint8)
    kept = ~given & words
    if config.duplicates == "drop":
        fate, _ = _follow(table, np.where(given, table.fixed, TRAIN).astype(np.uint8), config)
        kept &= fate != LEFT_OUT
    for part in np.unique(table.part[kept]):
        val, test = _fractions(table, table.part == part, config)
        mine = kept & (table.part == part)
        characters = table.characters[mine]
        middle = characters.cumsum(dtype=np.float64)  # of each document, in the part's length
        middle -= characters / 2
        middle /= characters.sum(dtype=np.float64)
        stretch = np.full(len(middle), TRAIN, np.uint8)
        stretch[middle >= 1 - val - test] = TEST
        stretch[middle >= 1 - val] = VAL
        if val and len(stretch) > 1:
            stretch[-1] = VAL
        stretch[0] = TRAIN
        sides[mine] = stretch
    if config.duplicates == "together":
        sides[_near_held(table, sides) & (sides == TRAIN) & ~given] = LEFT_OUT
    return sides


# ---- What both need ----


def _near_held(table: DocumentTable, sides: np.ndarray) -> np.ndarray:
    """Which documents are like one of validation or test, or are one: bool (n,)."""
    similar = table.similar()
    held = np.zeros(len(table), bool)  # by the first of the documents that say exactly the same
    held[similar.first[(sides == VAL) | (sides == TEST)]] = True
    near = held.copy()
    near[similar.later[held[similar.earlier]]] = True
    near[similar.earlier[held[similar.later]]] = True
    copies = similar.copies()
    near[copies] = near[similar.first[copies]]
    return near


def _why_empty(table: DocumentTable, sides: np.ndarray, config: DataConfig) -> str:
    """Why there is nothing to train on or to validate on, and what to do."""
    said = np.unique(table.content[table.characters > 0])
    if not len(said):
        return "there is no text to learn from: every document is empty. Look at what data.path or data.name holds"
    if len(said) == 1:
        return (
            f"there is only one document ({int(table.characters.max()):,} characters), and validation needs another: "
            "set data.document=passage or line, or name validation text with data.val_from"
        )
    if table.held().any() and not (sides == TRAIN).any() and (table.fixed == FREE).any():
        return (
            f"nothing is left to train on: all {int((table.fixed == FREE).sum()):,} other documents are almost the "
            "same as those of validation or test (data.val_from, data.test_from). Name other text for one of them, or "
            "set data.duplicates=ignore"
        )
    if table.held().any() and not (table.fixed == FREE).any():
        return "all documents are for validation or test (data.val_from, data.test_from): name text to train on too"
    return (
        "each source has only one document, so that none can be the last one: set data.document=passage or line, "
        "or data.split_by=content"
    )


# ---- One row ----


def _words(document: Document) -> str:
    """All the text of a document, the label aside: what a near-duplicate shares."""
    if document.messages is not None:
        return "\n".join(message["content"] for message in document.messages)
    return document.text if document.target is None else f"{document.text}\n{document.target}"


def content_of(document: Document) -> int:
    """What the table has in its column `content`."""
    return _content(document, _words(document).encode("utf-8", "surrogatepass"))


def _content(document: Document, text: bytes) -> int:
    """64 bits of all that a document says. Text alone is hashed as it is; JSON keeps the fields of others apart."""
    if document.target is None and document.label is None and document.messages is None:
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
    fields = [document.text, document.target, document.label, document.messages]
    framed = json.dumps(fields, sort_keys=True).encode()
    return int.from_bytes(blake2b(framed, digest_size=8, person=b"fields").digest(), "little")
