"""Rows of csv, jsonl and parquet files as documents, one after the other; knows nothing of tokens or sides.

A file may be of any size: only a few rows of it are held (of a .json file with one array: all of it).
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from utils.config.schema import DataConfig, SourceConfig
from utils.data.documents import BadRow, Document, Skipped
from utils.data.reading.columns import Columns, choose_columns, kind_of, listed, said, to_document
from utils.data.reading.hub_rows import schema_kinds
from utils.data.reading.text_files import LONGEST_LINE, SourceFile, lines
from utils.data.reading.text_stream import HEAD, bad_bytes, leave_out, text_blocks

SAMPLE = 100  # rows that show what a column holds
LONGEST_ARRAY = 1 << 28  # characters; a longer .json file is refused: it would be held whole
BATCH, BATCH_BYTES = 1_000, 1 << 23  # rows of a parquet file read at a time: so many, or of that size
DELIMITERS = (",", ";", "\t", "|")
CSV_TODO = "mend the row, or leave such rows out with data.on_bad_row=skip"

Row = tuple[str, dict[str, Any]]  # where it stands; its cells by column
Kinds = dict[str, str]


def table_documents(
    files: Iterable[SourceFile],
    source: str,
    part: SourceConfig,
    config: DataConfig,
    skipped: Skipped | None = None,
    side: str = "",
    index: int = 0,
) -> Iterator[Document]:
    """The rows of csv, jsonl or parquet files, in order. Columns are chosen by the first file and are the same in all.

    Args:
        files: of the kind `source`: csv, jsonl or parquet.
        part: which columns are read; `config`: see `choose_columns`.
        skipped: gets the rows that cannot be used; None = the first of them raises BadRow.
        side, index: what is written into each document.

    Raises ValueError naming the file where columns are missing or cannot be told.
    """
    columns: Columns | None = None
    for file in files:
        try:
            kinds, rows = OPEN[source](file, skipped)
            if not kinds:
                continue  # without rows
            columns = _columns(columns, kinds, file, part, config)
            yield from _documents(rows(columns), columns, skipped, side, index)
        except BadRow as bad:  # what ends the file
            leave_out(bad, skipped)


def _documents(
    rows: Iterable[Row], columns: Columns, skipped: Skipped | None, side: str, index: int
) -> Iterator[Document]:
    for where, row in rows:
        try:
            document = to_document(row, columns, where, side, index)
        except BadRow as bad:
            leave_out(bad, skipped)
            continue
        yield document


def _columns(chosen: Columns | None, kinds: Kinds, file: SourceFile, part: SourceConfig, config: DataConfig) -> Columns:
    if chosen is None:
        return choose_columns(kinds, part, config)
    missing = [name for name in chosen.names if name not in kinds and name != chosen.context]
    if missing:
        raise BadRow(file.name, f"no column {missing[0]}, which the files before it have; it has {listed(kinds)}")
    return chosen


# ---- csv ----


def open_csv(file: SourceFile, skipped: Skipped | None) -> tuple[Kinds, Callable[[Columns], Iterable[Row]]]:
    """The kinds of a csv file's columns, told by its first rows, and its rows. The first row must name the columns."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    blocks = text_blocks(file.path, file.name, skipped)
    head = ""
    while len(head) < HEAD and (block := next(blocks, "")):
        head += block
    if not head.strip():
        return {}, lambda columns: ()
    delimiter = sniff_delimiter(head[:HEAD], cut=len(head) > HEAD)
    ended = (line + "\n" for line in lines(chain([head], blocks), file.name))
    reader = csv.reader(ended, delimiter=delimiter, strict=True)
    names = _header(reader, file.name)
    rows = _csv_rows(reader, names, file.name, skipped)
    first = list(islice(rows, SAMPLE))
    kinds = {name: _csv_kind([row[name] for _, row in first]) for name in names}
    return kinds, lambda columns: chain(first, rows)


def sniff_delimiter(head: str, cut: bool) -> str:
    """What separates the cells: that of DELIMITERS by which most rows have as many as the first, which has the most."""
    rows = head.splitlines(keepends=True)[: -1 if cut else None] or [head]

    def fit(delimiter: str) -> tuple[float, int]:
        counts = []
        try:
            for row in islice(csv.reader(rows, delimiter=delimiter), 50):
                counts.append(len(row))
        except csv.Error:
            pass
        if not counts or counts[0] < 2:
            return 0.0, 0
        full = [count for count in counts if count]
        return full.count(counts[0]) / len(full), counts[0]

    return max(DELIMITERS, key=fit)  # the first of equals: a comma


def _header(reader: Any, name: str) -> list[str]:
    try:
        header: list[str] = next(filter(None, reader), [])
    except csv.Error as error:
        raise BadRow(f"{name} line 1", _csv_problem(error, 1, reader.line_num)) from None
    names = [cell.strip() or f"column {i}" for i, cell in enumerate(header, 1)]
    twice = next((one for one, count in Counter(names).items() if count > 1), "")
    if twice or all(_is_number(one) for one in names):
        why = f"{twice!r} stands in it twice" if twice else "it holds numbers"
        raise BadRow(f"{name} line 1", f"the first row must name the columns, and {why}: add a row such as text,label")
    return names


def _csv_rows(reader: Any, names: list[str], name: str, skipped: Skipped | None) -> Iterator[Row]:
    number = 0
    while True:
        line = reader.line_num + 1
        where = f"{name} row {number + 1} (line {line})"
        try:
            row = next(reader, None)
        except csv.Error as error:
            number += 1
            leave_out(BadRow(where, _csv_problem(error, line, reader.line_num)), skipped)
            continue
        if row is None:
            return
        if not row:
            continue  # an empty line
        number += 1
        problem = _row_problem(row, names, skipped is not None)
        if problem:
            leave_out(BadRow(where, f"{problem}: {CSV_TODO}"), skipped)
        else:
            yield where, dict(zip(names, row, strict=True))


def _row_problem(row: list[str], names: list[str], lenient: bool) -> str:
    if len(row) < len(names):
        return f"{len(row)} cells, and the header has {len(names)}: column {names[len(row)]} is missing"
    if len(row) > len(names):
        return f"{len(row)} cells, and the header has {len(names)}: {row[len(names)][:20]!r} is one too many"
    if lenient:
        for column, cell in zip(names, row, strict=True):
            if bad := bad_bytes(cell, "", 1):
                return f"column {column}: {bad.problem.split('.')[0]}"
    return ""


def _csv_problem(error: csv.Error, line: int, last: int) -> str:
    text = str(error)
    taken = f" (it takes the lines up to {last:,} with it)" if last > line else ""
    if "unexpected end" in text:
        return (
            f'a quote that opens here is never closed{taken}: close it, write "" for one inside a cell, or {CSV_TODO}'
        )
    if "field larger" in text:
        return f"a cell of more than {LONGEST_LINE:,} characters{taken}: is a quote never closed? {CSV_TODO}"
    if "expected after" in text:
        return f'text follows a closing quote: write "" for a quote inside a cell, or {CSV_TODO}'
    if "new-line" in text:
        return f"a carriage return in a cell without quotes: put the cell in quotes, or {CSV_TODO}"
    return f"not csv ({text}): {CSV_TODO}"


def _csv_kind(cells: list[str]) -> str:
    told = [cell for cell in cells if cell]
    return "number" if told and all(map(_is_number, told)) else "text"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


# ---- jsonl ----


def open_jsonl(file: SourceFile, skipped: Skipped | None) -> tuple[Kinds, Callable[[Columns], Iterable[Row]]]:
    """The kinds of the fields of a file of one JSON object per line (or of one array of them), and those rows."""
    blocks = text_blocks(file.path, file.name, skipped)
    first = next(blocks, "")
    begin = first.lstrip()
    coming = chain([first], blocks)
    rows = _array_rows(coming, file.name, skipped) if begin[:1] == "[" else _line_rows(coming, file.name, skipped)
    sample = list(islice(rows, SAMPLE))
    names = dict.fromkeys(chain.from_iterable(row for _, row in sample))
    kinds: Kinds = {name: kind_of(row.get(name) for _, row in sample) for name in names}
    return kinds, lambda columns: chain(sample, rows)


def _line_rows(blocks: Iterable[str], name: str, skipped: Skipped | None) -> Iterator[Row]:
    for number, line in enumerate(lines(blocks, name), 1):
        if not line or line.isspace():
            continue
        where = f"{name} line {number}"
        try:
            if skipped is not None and (bad := bad_bytes(line, name, number)):
                raise bad
            yield where, _object(_parsed(line, where), where)
        except BadRow as bad:
            leave_out(bad, skipped)


def _array_rows(blocks: Iterable[str], name: str, skipped: Skipped | None) -> Iterator[Row]:
    pieces, size = [], 0
    for block in blocks:
        pieces.append(block)
        size += len(block)
        if size > LONGEST_ARRAY:
            raise BadRow(
                name, f"one array of more than {LONGEST_ARRAY:,} characters: write one object per line (.jsonl)"
            )
    text = "".join(pieces)
    if skipped is not None and (bad := bad_bytes(text, name, 1)):
        raise bad
    for number, item in enumerate(_parsed(text, name), 1):
        where = f"{name} row {number}"
        try:
            yield where, _object(item, where)
        except BadRow as bad:
            leave_out(bad, skipped)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}" if "\n" in text else f"column {error.colno}"
        what = f"{error.msg[0].lower()}{error.msg[1:]}"
        raise BadRow(where, f"not JSON at {at}: {what}. Each line must be one whole object; {CSV_TODO}") from None
    except (RecursionError, ValueError) as error:
        raise BadRow(where, f"JSON that cannot be read ({error}): {CSV_TODO}") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRow(where, f'{said(value)}, not an object such as {{"text": "..."}}: {CSV_TODO}')
    return value


# ---- parquet ----


def open_parquet(file: SourceFile, skipped: Skipped | None) -> tuple[Kinds, Callable[[Columns], Iterable[Row]]]:
    """The kinds of a parquet file's columns, and its rows, of which only the columns chosen are read."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(file.path, buffer_size=HEAD, pre_buffer=False)
    except PermissionError:
        raise ValueError(f"{file.path}: may not be read by this user (permission denied)") from None
    except (ArrowException, OSError) as error:
        raise BadRow(file.name, f"damaged, or no parquet file ({_first_line(error)}): get the file again") from None
    kinds, classes = schema_kinds(table.schema_arrow)
    return kinds, lambda columns: _parquet_rows(table, columns, classes, file.name)


def _parquet_rows(table: Any, columns: Columns, classes: dict[str, list[str]], name: str) -> Iterator[Row]:
    from pyarrow import ArrowException

    number = 0
    has = [column for column in columns.names if column in table.schema_arrow.names]
    try:
        with table:
            for batch in table.iter_batches(_batch_size(table.metadata, has), columns=has, use_threads=False):
                names = batch.schema.names
                cells = [_cells(column, classes.get(of)) for of, column in zip(names, batch.columns, strict=True)]
                for values in zip(*cells, strict=True):
                    number += 1
                    yield f"{name} row {number}", dict(zip(names, values, strict=True))
    except (ArrowException, OSError) as error:
        problem = f"damaged from here on ({_first_line(error)}): get the file again"
        raise BadRow(f"{name} row {number + 1}", problem) from None


def _batch_size(metadata: Any, columns: list[str]) -> int:
    """How many rows hold about BATCH_BYTES."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    parts = [group.column(i) for group in groups for i in range(group.num_columns)]
    size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)
    return max(1, min(BATCH, int(BATCH_BYTES * metadata.num_rows / max(1, size))))


def _cells(column: Any, classes: list[str] | None) -> list[Any]:
    """A column's values, classes by their names; text that is not UTF-8 becomes bytes, which no row can use."""
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = [_cell(value) for value in column]
    if classes:
        return [classes[i] if isinstance(i, int) and 0 <= i < len(classes) else None for i in values]
    return values  # type: ignore[no-any-return]


def _cell(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error.object


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


OPEN = {"csv": open_csv, "jsonl": open_jsonl, "parquet": open_parquet}
