"""Rows of the Hub's cache (arrow files, or the spool of a stream), a thousand at a time, as Documents; no network."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from utils.config.schema import DataConfig, SourceConfig
from utils.data.documents import BadRow, Document, Skipped
from utils.data.reading.columns import Kind, choose_columns, to_document
from utils.data.reading.text_stream import leave_out

ROWS = 1_000  # rows that are held at a time


class Rows(NamedTuple):
    """Columns of a split, batch by batch."""

    kinds: dict[str, Kind]
    """What each column holds: text, messages, number, other."""
    classes: dict[str, list[str]]
    """The names that stand for 0, 1, ... in a column of classes."""
    batches: Iterator[dict[str, Any]]
    """{column: its values in up to ROWS rows}; a value is a list, or something with `to_pylist`."""


def schema_kinds(schema: Any) -> tuple[dict[str, Kind], dict[str, list[str]]]:
    """(kind of each column, names of classes) of an arrow schema."""
    told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = told.get("info", {}).get("features") or {}
    classes = {name: feature.get("names", []) for name, feature in features.items()
               if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"}  # fmt: skip
    return {field.name: _kind(field.type) for field in schema}, classes


def _kind(of: Any) -> Kind:
    from pyarrow import types

    if types.is_dictionary(of):
        of = of.value_type
    if types.is_string(of) or types.is_large_string(of) or str(of) == "string_view":
        return "text"
    if types.is_integer(of) or types.is_floating(of) or types.is_boolean(of):
        return "number"
    fields: set[str] = set()
    if (types.is_list(of) or types.is_large_list(of)) and types.is_struct(of.value_type):
        fields = {field.name for field in of.value_type}
    elif types.is_struct(of):  # how older versions of `datasets` keep a list of objects: an object of lists
        fields = {field.name for field in of if types.is_list(field.type)}
    return "messages" if fields >= {"role", "content"} or fields >= {"from", "value"} else "other"


def arrow_rows(folder: Path, split: str) -> Rows:
    """The rows of a split that `datasets` prepared in `folder`. Raises ValueError if it has none."""
    import pyarrow

    files = sorted(folder.glob(f"*-{split}.arrow")) or sorted(folder.glob(f"*-{split}-?????-of-?????.arrow"))
    if not files:
        raise ValueError(f"{folder} holds no split {split}: delete that folder, and prepare the dataset again")

    def batches() -> Iterator[dict[str, Any]]:
        for file in files:
            with pyarrow.OSFile(str(file)) as raw, pyarrow.ipc.open_stream(raw) as stream:  # a map counts as memory
                for batch in stream:
                    for start in range(0, batch.num_rows, ROWS):
                        piece = batch.slice(start, ROWS)
                        yield dict(zip(piece.schema.names, piece.columns, strict=True))

    with pyarrow.OSFile(str(files[0])) as raw, pyarrow.ipc.open_stream(raw) as stream:
        return Rows(*schema_kinds(stream.schema), batches())


def spooled_rows(spool: Path) -> Rows:
    """The rows that were taken from a stream."""

    def batches() -> Iterator[dict[str, Any]]:
        with gzip.open(spool, "rb") as file:
            names = json.loads(file.readline())["columns"]
            held: list[list[Any]] = []
            for line in file:
                held.append(json.loads(line))
                if len(held) == ROWS:
                    yield dict(zip(names, map(list, zip(*held, strict=True)), strict=True))
                    held = []
            if held:
                yield dict(zip(names, map(list, zip(*held, strict=True)), strict=True))

    with gzip.open(spool, "rb") as file:
        head = json.loads(file.readline())
    return Rows(head["kinds"], head["classes"], batches())


def read_rows(
    rows: Rows, part: SourceConfig, config: DataConfig, where: str, skipped: Skipped | None
) -> Iterator[Document]:
    """The documents in `rows`; `where` is what a row's number is written after.

    Bad rows go to `skipped`; where it is None the first of them raises BadRow.
    """
    chosen = choose_columns(rows.kinds, part, config)
    names = chosen.names
    done = 0
    for batch in rows.batches:
        columns = [_values(batch[name], rows.classes.get(name)) for name in names]
        for i, cells in enumerate(zip(*columns, strict=True), done + 1):
            try:
                document = to_document(dict(zip(names, cells, strict=True)), chosen, f"{where} row {i}")
            except BadRow as bad:
                leave_out(bad, skipped)
                continue
            yield document
        done += len(columns[0])


def _values(column: Any, classes: list[str] | None) -> list[Any]:
    """A column as a list. Classes get their names; null where there is none: -1 often stands for one kept secret."""
    values = column if isinstance(column, list) else _cells(column)
    if classes:
        return [classes[i] if isinstance(i, int) and 0 <= i < len(classes) else None for i in values]
    if any(isinstance(value, dict) for value in values):
        return [_objects(value) for value in values]
    return values


def _cells(column: Any) -> list[Any]:
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:  # bytes stay in the place of text that is not UTF-8, which makes those rows bad ones
        import pyarrow

        return column.cast(pyarrow.binary()).to_pylist()  # type: ignore[no-any-return]


def _objects(value: Any) -> Any:
    """A list of objects, of what older versions of `datasets` keep as an object of lists."""
    if not isinstance(value, dict) or not all(isinstance(cells, list) for cells in value.values()):
        return value
    return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=False)]
