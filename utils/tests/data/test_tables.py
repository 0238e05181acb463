"""Rows of csv, jsonl and parquet files come in as they were written; each bad one is named by file, row and column."""

import csv
import gzip
import io
import json
import re
import subprocess
import sys

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from utils.config.schema import DataConfig
from utils.data.documents import BadRow, Skipped
from utils.data.reading.tables import table_documents
from utils.data.reading.text_files import find_files

LETTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# What a csv writer puts into quotes always comes back; outside them a carriage return or an empty line would not.
TEXTS = st.lists(LETTERS, min_size=1, max_size=8)


def documents(path, skipped=None, **settings):
    source = settings.pop("source", "csv" if "csv" in path.name or "tsv" in path.name else path.suffix[1:])
    config = DataConfig(source=source, path=str(path), **settings)
    return list(table_documents(find_files(str(path), source), source, config, config, skipped))


def texts(path, skipped=None, **settings):
    return [one.text for one in documents(path, skipped, **settings)]


def written(folder, name, data):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# -- round trips -----------------------------------------------------------------------------------


@given(TEXTS, st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n"]))
@settings(deadline=None, max_examples=60)
def test_csv_comes_back(tmp_path_factory, rows, delimiter, end):
    path = tmp_path_factory.mktemp("a") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
        table.writerows([["id", "text"], *([str(i), text] for i, text in enumerate(rows))])
    assert texts(path, text_field="text") == rows  # named, as a column of nothing but digits is taken for numbers


@given(TEXTS, st.booleans(), st.sampled_from(["", ".gz", ".zst"]))
@settings(deadline=None, max_examples=60)
def test_jsonl_comes_back(tmp_path_factory, rows, ascii_only, packed):
    lines = "\n".join(json.dumps({"id": i, "text": text}, ensure_ascii=ascii_only) for i, text in enumerate(rows))
    data = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packed](lines.encode())
    path = written(tmp_path_factory.mktemp("a"), f"a.jsonl{packed}", data)
    assert texts(path, source="jsonl") == rows


@given(TEXTS)
@settings(deadline=None, max_examples=40)
def test_parquet_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("a") / "a.parquet"
    parquet.write_table(pyarrow.table({"text": rows, "id": range(len(rows))}), path, row_group_size=3)
    assert texts(path) == rows


def test_a_json_file_may_be_one_array(tmp_path):
    path = written(tmp_path, "a.json", json.dumps([{"text": "one"}, {"text": "two\n"}], indent=2))
    assert [(one.text, one.where) for one in documents(path, source="jsonl")] == [
        ("one", "a.json row 1"), ("two\n", "a.json row 2"),
    ]  # fmt: skip


def test_several_files_are_read_with_the_columns_of_the_first(tmp_path):
    written(tmp_path, "a.csv", "title,text\nA,one\n")
    written(tmp_path, "b.tsv.gz", gzip.compress(b"text\ttitle\ntwo\tB\n"))
    assert texts(tmp_path, source="csv") == ["one", "two"]
    written(tmp_path, "c.csv", "title,body\nC,three\n")
    with pytest.raises(
        BadRow, match=r"^c.csv: no column text, which the files before it have; it has title \(text\), b"
    ):
        texts(tmp_path, source="csv")
    skipped = Skipped()
    assert texts(tmp_path, skipped, source="csv") == ["one", "two"]
    assert skipped.count == 1


def test_rows_say_where_they_are(tmp_path):
    path = written(tmp_path, "a.csv", 'id,text\n1,"two\nlines"\n\n2,b\n')
    assert [one.where for one in documents(path)] == ["a.csv row 1 (line 2)", "a.csv row 2 (line 5)"]
    path = written(tmp_path, "a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n')
    assert [one.where for one in documents(path)] == ["a.jsonl line 1", "a.jsonl line 3"]
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    assert [one.where for one in documents(tmp_path / "a.parquet")] == ["a.parquet row 1", "a.parquet row 2"]


# -- columns ---------------------------------------------------------------------------------------


def test_pairs_classes_and_chats_come_from_every_kind_of_file(tmp_path):
    chat = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    rows = [{"prompt": "p", "completion": "c", "label": 3}, {"prompt": "q", "completion": "d", "label": 4}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    paths = [
        written(tmp_path, "a.csv", "prompt,completion,label\np,c,3\nq,d,4\n"),
        written(tmp_path, "a.jsonl", lines),
        tmp_path / "a.parquet",
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), paths[2])
    for path in paths:
        found = documents(path, task="classification")
        assert [(one.text, one.target, one.label) for one in found] == [("p", "c", "3"), ("q", "d", "4")]
    chats = [written(tmp_path, "b.jsonl", json.dumps({"id": 1, "conversations": chat})), tmp_path / "b.parquet"]
    parquet.write_table(pyarrow.table({"conversations": [chat]}), chats[1])
    for path in chats:
        assert [one.messages for one in documents(path)] == [
            ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"})
        ]


def test_a_column_that_is_not_there_is_asked_for_with_those_that_are(tmp_path):
    path = written(tmp_path, "a.csv", "id,name,story_text\n1,A,Once\n")
    with pytest.raises(
        ValueError, match=re.escape("holds the text? There are id (number), name (text), story_text (text)")
    ):
        documents(path)
    with pytest.raises(ValueError, match="data.text_field=story: .* no such column.*; did you mean story_text\\?$"):
        documents(path, text_field="story")
    assert texts(path, text_field="id") == ["1"], "in csv a number is text too"


def test_classes_with_names_are_told_by_them(tmp_path):
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "a.parquet")
    skipped = Skipped()
    found = documents(tmp_path / "a.parquet", skipped, task="classification")
    assert [one.label for one in found] == ["good", "bad"]
    assert skipped.first[0].startswith("a.parquet row 3: column label is null")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_told_by_what_most_rows_agree_on(tmp_path, delimiter):
    rows = [["id", "text"], ["1", "a, b; c | d"], ["2", "x, y, z"], ["3", 'say "a; b"']]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    assert texts(written(tmp_path, "a.csv", text.getvalue())) == [row[1] for row in rows[1:]]


def test_one_column_needs_no_delimiter(tmp_path):
    assert texts(written(tmp_path, "a.csv", "text\nhello\nyou | there\n")) == ["hello", "you | there"]


# -- bad rows --------------------------------------------------------------------------------------

TODO = "mend the row, or leave such rows out with data.on_bad_row=skip"


CSV = "a.csv row 2 (line 3)"
JSONL = "a.jsonl line 2"


@pytest.mark.parametrize(
    ("where", "row", "problem"),
    [
        (CSV, b"2", f"1 cells, and the header has 2: column text is missing: {TODO}"),
        (CSV, b"2,b,x", f"3 cells, and the header has 2: 'x' is one too many: {TODO}"),
        (CSV, b'2,"b"x', 'text follows a closing quote: write "" for a quote inside a cell, or'),
        (CSV, b"2,b\rb", "a carriage return in a cell without quotes: put the cell in quotes, or"),
        ("a.csv line 3", b"2,\xe9", "not UTF-8 text: byte 0xe9"),
        (JSONL, b'{"text": "b}', "not JSON at column 10: unterminated string starting at. Each line must be one whole"),
        (JSONL, b'{"text": "b"} x', "not JSON at column 15: extra data"),
        (JSONL, b'["b"]', 'a list, not an object such as {"text": "..."}: mend'),
        (JSONL, b'{"txt": "b"}', "column text is missing (there: txt): mend"),
        (JSONL, b'{"text": null}', f"column text is null: {TODO}"),
        (JSONL, b'{"text": 3}', "column text holds the number 3, not text"),
        (JSONL, b'{"text": "\\udc00"}', "column text holds half a character (U+DC00)"),
        (JSONL, b'{"text": "\xe9"}', "not UTF-8 text: byte 0xe9"),
        (JSONL, b"[" * 99_999, "JSON that cannot be read (maximum recursion depth"),
        ("a.json row 2", b"3", 'the number 3, not an object such as {"text": "..."}'),
    ],
)
def test_a_bad_row_is_named_and_left_out_when_asked(tmp_path, where, row, problem):
    name = where.split()[0]
    good = [b'{"text": "a"}', b'{"text": "c"}']
    data = {
        "a.csv": b"\n".join([b"id,text", b"1,a", row, b"3,c"]),
        "a.jsonl": b"\n".join([good[0], row, good[1]]),
        "a.json": b"[" + b", ".join([good[0], row, good[1]]) + b"]",
    }
    path = written(tmp_path, name, data[name])
    source = "csv" if name == "a.csv" else "jsonl"
    with pytest.raises(BadRow, match=f"^{re.escape(f'{where}: {problem}')}"):
        documents(path, source=source, text_field="text")
    skipped = Skipped()
    assert texts(path, skipped, source=source, text_field="text") == ["a", "c"]
    assert skipped.count == 1
    assert re.match(r"a\.(csv row 2 \(line 3\)|jsonl line 2|json row 2): ", skipped.first[0])
    assert problem in skipped.first[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text,text\na,b\n", "a.csv line 1: the first row must name the columns, and 'text' stands in it twice"),
        ("1,2.5\n3,4\n", "a.csv line 1: the first row must name the columns, and it holds numbers: add a row such as"),
        ('"text\na\n', "a.csv line 1: a quote that opens here is never closed (it takes the lines up to 2 with it)"),
    ],
)
def test_a_csv_file_must_begin_with_the_names_of_its_columns(tmp_path, text, said):
    with pytest.raises(BadRow, match=f"^{re.escape(said)}"):
        documents(written(tmp_path, "a.csv", text))


def test_an_unclosed_quote_says_what_it_swallows(tmp_path):
    path = written(tmp_path, "a.csv", 'id,text\n1,a\n2,"b\n' + "3,c\n" * 9)
    said = r"^a.csv row 2 \(line 3\): a quote that opens here is never closed \(it takes the lines up to 12 with it\)"
    with pytest.raises(BadRow, match=said):
        documents(path)
    skipped = Skipped()
    assert texts(path, skipped) == ["a"]
    assert "up to 12 with it" in skipped.first[0]


def test_a_cell_may_be_very_long(tmp_path):
    assert texts(written(tmp_path, "a.csv", f"id,text\n1,{'x' * 3_000_000}\n")) == ["x" * 3_000_000]


def test_nulls_and_wrong_types_in_parquet_are_bad_rows(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["a", None, "c"], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    with pytest.raises(BadRow, match=f"^a.parquet row 2: column text is null: {TODO}$"):
        documents(tmp_path / "a.parquet")
    skipped = Skipped()
    assert texts(tmp_path / "a.parquet", skipped) == ["a", "c"]
    assert skipped.count == 1
    with pytest.raises(BadRow, match="^a.parquet row 1: column n holds the number 1, not text"):
        documents(tmp_path / "a.parquet", text_field="n")
    edges, letters = pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")
    wrong = pyarrow.Array.from_buffers(pyarrow.utf8(), 2, [None, edges, letters])
    parquet.write_table(pyarrow.table({"text": wrong}), tmp_path / "b.parquet")
    with pytest.raises(BadRow, match="^b.parquet row 2: column text holds a bytes, not text"):
        documents(tmp_path / "b.parquet")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "changed"])
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [f"{i * i}" for i in range(9_000)]}), path)
    data = path.read_bytes()
    middle = len(data) // 3
    broken = data[:4] + b"\xff" * middle + data[middle + 4 :]
    path.write_bytes({"empty": b"", "text": b"text\n" * 9, "cut": data[:-99], "changed": broken}[damage])
    with pytest.raises(BadRow, match=r"^a.parquet( row 1)?: damaged.* \(.+\): get the file again$"):
        documents(path)


def test_a_file_without_rows_is_passed_over(tmp_path):
    for name, data in (("a.csv", ""), ("b.csv", "text\n"), ("c.csv", "text\nhello\n")):
        written(tmp_path, name, data)
    assert texts(tmp_path, source="csv") == ["hello"]


# -- size ------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from utils.config.schema import DataConfig
from utils.data.reading.sources import read_documents
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def read(path): return sum(len(one.text) for one in read_documents(DataConfig(source=sys.argv[1], path=path)))
read(sys.argv[2])
before = peak()
print(read(sys.argv[3]), peak() - before)
"""


@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, source):
    text, rows = "A row of ordinary words, é and all, of no great length. " * 20, 50_000
    paths = []
    for name, count in (("small", 2_000), ("big", rows)):
        path = tmp_path / f"{name}.{source}"
        paths.append(str(path))
        if source == "parquet":
            many = pyarrow.table({"text": [f"{i} {text}" for i in range(count)]})
            parquet.write_table(many, path, compression="none", use_dictionary=False)
        else:
            line = {"csv": f"1,{text!r}\n".replace("'", '"'), "jsonl": json.dumps({"text": text}) + "\n"}[source]
            path.write_text("id,text\n" * (source == "csv") + line * count)
    command = [sys.executable, "-c", PEAK, source, *paths]
    size, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(size) >= len(text) * rows > 50_000_000
    assert float(grown) < 25, f"{grown} MB more than for a small file"
