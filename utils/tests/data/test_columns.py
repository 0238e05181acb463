"""Columns are told by the settings, else by names and kinds, else asked for; a row is a document or says why not."""

import re

import pytest

from utils.config.schema import DataConfig
from utils.data.documents import BadRow
from utils.data.reading.columns import Columns, choose_columns, kind_of, to_document


def chosen(kinds, task="auto", **settings):
    if isinstance(kinds, str):
        kinds = dict.fromkeys(kinds.split(), "text")
    config = DataConfig(source="csv", path="a.csv", task=task, **settings)
    return choose_columns(kinds, config, config)


NUMBER, TEXT, CHAT, OTHER = "number", "text", "messages", "other"


@pytest.mark.parametrize(
    ("kinds", "columns"),
    [
        ({"id": NUMBER, "review": TEXT}, Columns("review")),
        ({"review": TEXT, "label": TEXT}, Columns("review")),
        ("id title text", Columns("text")),
        ("id title Body", Columns("Body")),
        ("content text", Columns("text")),
        ("id prompt", Columns("prompt")),
        ("id prompt completion", Columns("prompt", "completion")),
        ("response id prompt", Columns("prompt", "response")),
        ("question answer id", Columns("question", "answer")),
        ("instruction output", Columns("instruction", "output")),
        ("instruction input output", Columns("instruction", "output", context="input")),
        ("instruction context response category", Columns("instruction", "response", context="context")),
        ({"prompt": TEXT, "prompt_id": TEXT, "messages": CHAT}, Columns(messages="messages")),
        ({"id": TEXT, "conversations": CHAT}, Columns(messages="conversations")),
        ({"id": NUMBER, "talk": CHAT}, Columns(messages="talk")),
        ({"text": NUMBER, "words": TEXT}, Columns("words")),
    ],
)
def test_columns_are_told_by_their_names_and_kinds(kinds, columns):
    assert chosen(kinds) == columns
    if isinstance(kinds, dict):
        assert choose_columns(kinds.items(), DataConfig(), DataConfig()) == columns


@pytest.mark.parametrize(
    ("kinds", "settings", "columns"),
    [
        ("title text", {"text_field": "title"}, Columns("title")),
        ("prompt completion x", {"text_field": "prompt"}, Columns("prompt")),
        ("a b", {"text_field": "a", "target_field": "b"}, Columns("a", "b")),
        ("a b", {"target_field": "b"}, Columns("a", "b")),
        ("question text b", {"target_field": "b"}, Columns("question", "b")),
        ({"a": TEXT, "chat": CHAT}, {"text_field": "chat"}, Columns(messages="chat")),
        ("text label", {"task": "classification"}, Columns("text", label="label")),
        ({"text": TEXT, "labels": NUMBER}, {"task": "classification"}, Columns("text", label="labels")),
        ("text kind label", {"task": "classification", "label_field": "kind"}, Columns("text", label="kind")),
        ("review kind", {"label_field": "kind"}, Columns("review", label="kind")),
    ],
)
def test_the_settings_count_first(kinds, settings, columns):
    assert chosen(kinds, **settings) == columns


@pytest.mark.parametrize(
    ("kinds", "settings", "said"),
    [
        ("id title summary", {}, "which column of a.csv holds the text? There are id (text), title (text), "
                                 "summary (text): say data.text_field=NAME"),
        ({"id": NUMBER, "x": OTHER}, {}, "There are id (number), x (other)"),
        ("titel text", {"text_field": "title"}, "data.text_field=title: a.csv has no such column, but titel (text), "
                                                "text (text); did you mean titel?"),
        ("text", {"target_field": "zzz"}, "data.target_field=zzz: a.csv has no such column, but text (text)"),
        ("text", {"label_field": "y"}, "data.label_field=y: a.csv has no such column"),
        ("text kind", {"task": "classification"}, "which column of a.csv holds it? There are text (text), "
                                                  "kind (text): say data.label_field=NAME"),
        ({"m": CHAT, "b": TEXT}, {"text_field": "m", "target_field": "b"}, "holds chats, whose answers are in them"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_asked_for_with_the_columns_listed(kinds, settings, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        chosen(kinds, **settings)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", None, ""], "text"),
        ([1, 2.5, True], "number"),
        ([[{"role": "user", "content": "x"}], []], "messages"),
        ([[{"from": "human", "value": "x", "weight": 1}]], "messages"),
        ([[{"role": "user"}]], "other"),
        (["a", 1], "other"),
        ([{"a": 1}], "other"),
        ([None], "other"),
    ],
)
def test_what_a_column_holds_is_told_by_its_values(values, kind):
    assert kind_of(values) == kind


def test_a_row_becomes_a_document():
    row = {"q": "Why?", "c": "It rains.", "a": "Wet.", "y": 3.0}
    found = to_document(row, Columns("q", "a", "y", context="c"), "a.csv row 7", "val", 2)
    assert (found.text, found.target, found.label) == ("Why?\nIt rains.", "Wet.", "3")
    assert (found.where, found.side, found.part, found.messages) == ("a.csv row 7", "val", 2, None)
    assert to_document({**row, "c": ""}, Columns("q", context="c"), "").text == "Why?"


def test_chats_of_both_spellings_are_the_same():
    ours = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ]
    theirs = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    columns = Columns(messages="m")
    found = to_document({"m": theirs}, columns, "x")
    assert found.messages == tuple(ours)
    assert found.text == ""
    assert to_document({"m": ours}, columns, "x") == found


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (None, "column text is null: mend the row, or leave such rows out with data.on_bad_row=skip"),
        (3, "column text holds the number 3, not text: name another with data.text_field"),
        (True, "column text holds true, not text"),
        (["a"], "column text holds a list, not text"),
        ({"a": 1}, "column text holds an object, not text"),
        (b"\xff", "column text holds a bytes, not text"),
        ("a\ud800", "column text holds half a character (U+D800), which is no text"),
    ],
)
def test_a_cell_without_text_is_a_bad_row_that_names_the_column(cell, said):
    with pytest.raises(BadRow, match="^" + re.escape(f"b.jsonl line 2: {said}")):
        to_document({"text": cell}, Columns("text"), "b.jsonl line 2")


def test_a_missing_field_is_said_with_those_that_are_there():
    with pytest.raises(BadRow, match=re.escape("x: column text is missing (there: txt, id): ")):
        to_document({"txt": "a", "id": 1}, Columns("text"), "x")
    with pytest.raises(BadRow, match=re.escape("x: column a is missing (there: text): ")):
        to_document({"text": "b"}, Columns("text", "a"), "x")


@pytest.mark.parametrize(
    ("label", "text"), [("pos", "pos"), (3, "3"), (-1, "-1"), (2.0, "2"), (0.5, "0.5"), (True, "True")]
)
def test_a_class_is_text(label, text):
    assert to_document({"t": "a", "y": label}, Columns("t", label="y"), "").label == text


@pytest.mark.parametrize("label", [None, "", [1], {}])
def test_what_is_no_class_is_a_bad_row(label):
    with pytest.raises(BadRow, match="^x: column y (is null|holds .*, not a class \\(text or a number\\))"):
        to_document({"t": "a", "y": label}, Columns("t", label="y"), "x")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hi", "column m holds the text 'hi', not a list of messages"),
        ([], "column m holds an empty list, not a list of messages"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}],
         "column m, message 2: content is null, not text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "column m, message 1: content is a list, not text"),
        ([{"role": 1, "content": "a"}], "column m, message 1: role is the number 1, not text"),
        ([{"who": "user", "text": "a"}], 'column m, message 1 is one with who, text, not {"role": ...,'),
        (["a"], "column m, message 1 is the text 'a', not"),
        ([{"role": "user", "content": "\udcff"}], "column m, message 1 holds half a character"),
    ],
)  # fmt: skip
def test_a_bad_message_is_named(messages, said):
    with pytest.raises(BadRow, match="^" + re.escape(f"x: {said}")):
        to_document({"m": messages}, Columns(messages="m"), "x")


@pytest.mark.parametrize(
    ("name", "asked", "text"),
    [("instruction", "Add 2, 2", "Add 2, 2\n"), ("question", "Who?\n", "Who?\n"), ("prompt", "2 + 2 =", "2 + 2 =")],
)
def test_an_answer_begins_on_a_line_of_its_own_except_after_a_prompt(name, asked, text):
    one = to_document({name: asked, "output": "4"}, Columns(name, "output"), "here")
    assert (one.text, one.target) == (text, "4")
