"""Where documents come from: every source, one after the other, always in the same order; knows nothing of tokens."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from utils.config.schema import DataConfig, SourceConfig
from utils.data.documents import Document, Skipped
from utils.data.reading import stories, story_words
from utils.data.reading.text_files import ENDINGS, SourceFile, find_files, text_documents
from utils.runtime.files import sha256_file, sha256_json

VAL_STORIES = 1_000_000_000  # the number of the first validation story: no training set reaches it
SIDE_ORDER = ("val", "test", "")  # empty: what the source leaves to the split
FIELDS = ("text_field", "target_field", "label_field")


def read_documents(config: DataConfig, skipped: Skipped | None = None) -> Iterator[Document]:
    """All documents of all parts, always in the same order.

    First those whose side the source itself says (validation, then test), then the others; part by part.

    Args:
        config: what to read. A dataset of the Hub must be pinned (`pin`).
        skipped: gets the rows that were left out because data.on_bad_row=skip.

    Raises FileNotFoundError or ValueError, naming the file, row and column, and saying what to do.
    """
    skipped = (skipped or Skipped()) if config.on_bad_row == "skip" else None
    change = _hook(config)
    for side in SIDE_ORDER:
        for index, part in enumerate(parts_of(config)):
            for document in _of_side(part, index, side, config, skipped):
                changed = change(document)
                if changed is not None:
                    yield changed


def source_key(config: DataConfig) -> dict[str, Any]:
    """What decides the documents, as JSON: content, hooks and settings, whatever folder they are in.

    Reads every file once; asks the network for nothing. Raises as `read_documents` does for what is not there.
    """
    key: dict[str, Any] = {
        "parts": [_part_key(part, config) for part in parts_of(config)],
        "max_documents": config.max_documents,
        "on_bad_row": config.on_bad_row,
    }
    if config.hook:
        from utils.data.reading.hooks import hook_key

        key["hook"] = hook_key(config.hook)
    return key


def pin(config: DataConfig) -> tuple[DataConfig, tuple[str, ...]]:
    """The settings with what only the network knows filled in, and each such change in words.

    A dataset's revision becomes the commit it stands for; data.val_from and data.test_from become the splits the
    dataset has for that. Other sources are left as they are.
    """
    if not any(part.source == "hub" for part in parts_of(config)):
        return config, ()
    from utils.data.reading.hub_source import pin_hub

    notes: list[str] = []
    if not config.mixture:
        of_part, of_config, said = pin_hub(config, config)
        return config.model_copy(update={**of_part, **of_config}), tuple(said)
    parts = []
    for part in config.mixture:
        of_part = {}
        if part.source == "hub":
            of_part, _, said = pin_hub(part, config)  # a mixture has no val_from and test_from
            notes += said
        parts.append(part.model_copy(update=of_part))
    return config.model_copy(update={"mixture": parts}), tuple(notes)


def prepare_source(config: DataConfig, progress: Callable[[str, int, int], None] | None = None) -> None:
    """Download what `read_documents` will read of the Hub. `progress(what is done, how far, of how much)`."""
    for part in parts_of(config):
        if part.source == "hub":
            from utils.data.reading.hub_source import prepare_hub

            for place in filter(None, (_place(part, side, config) for side in SIDE_ORDER)):
                if _kind_of_source(part, place) == "hub":
                    prepare_hub(part, config, place, progress)


def floor_nats(config: DataConfig) -> float | None:
    """-log p(validation text), exact, in nats, where the source is the stories alone; else None."""
    if config.mixture or config.source != "stories":
        return None
    return stories.story_nats(_story_text("val", config))


def parts_of(config: DataConfig) -> Sequence[SourceConfig]:
    """The sources of a mixture, or the one there is. A document's `part` is the number of its source here."""
    return config.mixture or [config]


# ---- One part, one side ----


def _of_side(
    part: SourceConfig, index: int, side: str, config: DataConfig, skipped: Skipped | None
) -> Iterator[Document]:
    """A part's documents of one side (val, test), or all others (empty); at most data.max_documents of them."""
    if part.source == "stories":
        found = _stories(side, index, config)
    elif place := _place(part, side, config):
        found = _found(part, index, side, place, config, skipped)
    else:
        return
    yield from islice(found, config.max_documents or None)


def _place(part: SourceConfig, side: str, config: DataConfig) -> str:
    """The split or path that holds the documents of a side; empty = there is none."""
    if side:
        return config.val_from if side == "val" else config.test_from
    return part.split if part.source == "hub" else part.path


def _found(
    part: SourceConfig, index: int, side: str, place: str, config: DataConfig, skipped: Skipped | None
) -> Iterator[Document]:
    source = _kind_of_source(part, place)
    if source == "hub":
        from utils.data.reading.hub_source import hub_documents

        for one in hub_documents(part, config, place, skipped):
            yield Document(one.text, one.where, one.target, one.label, one.messages, side, index)
        return
    setting = f"data.{side}_from" if side else "data.path"
    files = find_files(place, source, setting)
    if source == "text":
        found = text_documents(files, part.document, skipped, side, index, alone=Path(place).is_file())
    else:
        from utils.data.reading.tables import table_documents

        found = table_documents(files, source, part, config, skipped, side, index)
    yield from _not_empty(found, f"{setting}={place}", skipped)


def _kind_of_source(part: SourceConfig, place: str) -> str:
    """How a place is read: beside a dataset of the Hub there may be files, told from its splits by a dot or a slash."""
    if part.source != "hub" or not ({".", "/"} & set(place)) or not Path(place).expanduser().exists():
        return part.source
    name = Path(place).name.lower()
    return next((kind for kind, endings in ENDINGS.items() for ending in endings if ending in name), "text")


def _stories(side: str, index: int, config: DataConfig) -> Iterator[Document]:
    if side != "test":
        own = side or "train"
        yield Document(_story_text(own, config), f"stories ({own})", side=own, part=index)


def _story_text(side: str, config: DataConfig) -> str:
    size = round(config.size * config.val_fraction)
    if side == "val":
        return stories.write_stories(size, config.seed, start=VAL_STORIES)
    return stories.write_stories(config.size - size, config.seed)


def _not_empty(found: Iterator[Document], where: str, skipped: Skipped | None) -> Iterator[Document]:
    """The documents; ValueError in the end if none of them says anything."""
    before = skipped.count if skipped else 0
    empty = True
    for document in found:
        if empty:
            empty = not (document.text.strip() or document.messages)
        yield document
    if empty:
        left_out = skipped.count - before if skipped else 0
        why = f" ({left_out:,} bad rows were left out; the first: {skipped.first[0]})" if skipped and left_out else ""
        raise ValueError(f"{where} is empty: there is no text to learn from{why}")


def _hook(config: DataConfig) -> Callable[[Document], Document | None]:
    if not config.hook:
        return lambda document: document
    from utils.data.reading.hooks import load_hook

    return load_hook(config.hook)


# ---- Keys ----


def _part_key(part: SourceConfig, config: DataConfig) -> dict[str, Any]:
    if part.source == "stories":
        program = [sha256_file(Path(path)) for path in (stories.__file__, story_words.__file__)]
        made = {"size": config.size, "seed": config.seed, "val_fraction": config.val_fraction}
        return {"source": "stories", "content": sha256_json(program), **made}
    key: dict[str, Any] = {"source": part.source}
    for side in SIDE_ORDER:
        if place := _place(part, side, config):
            source, name = _kind_of_source(part, place), f"{side}_from" if side else "content"
            key[name] = (
                place
                if source == "hub"
                else _content(find_files(place, source, f"data.{name}" if side else "data.path"))
            )
    if part.source == "hub":
        from utils.data.reading.hub_source import hub_key

        key["dataset"] = hub_key(part)
        if part.streaming:
            key["stream"] = {"seed": config.seed, "shuffle_buffer": config.shuffle_buffer}
    return {**key, **({"document": part.document} if part.source == "text" else _fields(part, config))}


def _fields(part: SourceConfig, config: DataConfig) -> dict[str, Any]:
    """The settings that choose columns; whether a label is looked for hangs on the task."""
    return {**{name: getattr(part, name) for name in FIELDS}, "labelled": config.task == "classification"}


def _content(files: list[SourceFile]) -> str:
    """A hash of every file's bytes and of where it stands below data.path."""
    content = hashlib.sha256()
    for file in files:
        key = os.fsencode(file.key)  # which need not be UTF-8
        content.update(b"%d %s %s\n" % (len(key), key, _sha256(file.path).encode()))
    return content.hexdigest()


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except PermissionError:
        raise ValueError(f"{path}: may not be read by this user (permission denied)") from None
