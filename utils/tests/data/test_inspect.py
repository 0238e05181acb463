"""A look at the data: the numbers of the store, its text, one example; escaped as HTML."""

import json

import pytest

from utils.config.schema import DataConfig
from utils.data.inspect import inspect_data

TEXT = '<b>Tom & "Jerry"</b>\n' + "one\ttwo\\ é\n" * 200


@pytest.fixture
def summary(tmp_path, monkeypatch):
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a&b.txt").write_text(TEXT, encoding="utf-8")
    return inspect_data(
        DataConfig(tokenizer="char", source="text", path=str(tmp_path / "a&b.txt"), seq_len=32, val_fraction=0.1)
    )


def test_the_numbers_are_those_of_the_store(summary):
    numbers = summary.to_dict()
    store = summary.store
    assert json.loads(json.dumps(numbers)) == numbers
    assert numbers["source"] == summary.config.path
    assert numbers["tokenizer"] == "char"
    assert numbers["vocab_size"] == len(set(TEXT)) + 1
    assert numbers["train_tokens"] == numbers["train_characters"] == len(store.train)
    assert numbers["val_tokens"] == numbers["val_characters"] == len(store.val)
    assert numbers["train_tokens"] + numbers["val_tokens"] == len(TEXT)
    assert numbers["entropy_floor"] is None
    assert numbers["fingerprint"] == store.fingerprint


def test_bytes_and_characters_are_told_apart(summary):
    more = inspect_data(summary.config.model_copy(update={"tokenizer": "byte"})).to_dict()
    assert more["train_tokens"] + more["val_tokens"] == len(TEXT.encode())
    assert more["train_characters"] + more["val_characters"] == len(TEXT)
    assert more["vocab_size"] == 256


def test_the_text_is_the_first_example(summary):
    assert summary.text() == TEXT[:32]


def test_the_example_shows_the_shift_by_one(summary):
    table = summary.example(tokens=30)
    inputs, ids, labels = table.rows
    assert [row[0] for row in table.rows] == ["input token", "input id", "label"]
    assert inputs[2:] == labels[1:-1]
    assert list(ids[1:]) == [str(i) for i in summary.store.train[:30].tolist()]
    assert list(inputs[1:6]) == ["<", "b", ">", "T", "o"]
    assert labels[20] == inputs[21] == "\\n"  # what cannot be seen is written out
    assert inputs[25] == "\\t"
    assert len(inputs) == len(ids) == len(labels) == 31


def test_the_example_of_a_text_shorter_than_asked_for(summary):
    table = summary.example(tokens=10**6)
    assert len(table.rows[0]) == len(summary.store.train)


def test_in_a_terminal(summary):
    text = repr(summary)
    n = len(summary.store.train)
    assert str(summary) == text
    assert f"to train on     {n:,} tokens ({n:,} characters)" in text
    assert f"tokenizer       char, {len(set(TEXT)) + 1} different tokens" in text
    assert TEXT[:32] in text
    assert "The label of each token is the token after it, for a model" in text
    assert "best possible loss" not in text


def test_in_a_notebook_everything_is_escaped(summary):
    html = summary._repr_html_()
    assert "&lt;b&gt;Tom &amp; &quot;Jerry&quot;&lt;/b&gt;" in html
    assert "<b>" not in html
    assert "a&b.txt" not in html
    assert "a&amp;b.txt" in html
    assert html.count("<table") == html.count("</table>") == 2


def test_stories_say_how_good_a_model_can_be(tmp_path, monkeypatch):
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))
    summary = inspect_data(DataConfig(tokenizer="char", size=10_000, val_fraction=0.2, seq_len=64))
    numbers = summary.to_dict()
    assert numbers["source"] == "stories"
    assert numbers["entropy_floor"] == summary.store.entropy_floor > 0
    assert f"best possible loss  {numbers['entropy_floor']:.4f} nats per token" in str(summary)
    assert summary.text().startswith("\n")


def test_it_raises_as_the_store_does(tmp_path, monkeypatch):
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        inspect_data(DataConfig(tokenizer="char", source="text", path=str(tmp_path / "none")))
