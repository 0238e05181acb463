"""A look at the data: the numbers of the store, its quality, its text, one example; escaped as HTML."""

import csv
import json
from pathlib import Path

import pytest

from utils.config.schema import DataConfig
from utils.data.looking.inspect import describe_store, inspect_data
from utils.data.storing.token_store import open_store

LINES = ['<b>Tom & "Jerry"</b>', *(f"one\ttwo\\ é number {i}" for i in range(400))]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))


def text_config(folder: Path, *lines: str, **settings) -> DataConfig:
    (folder / "a&b.txt").write_text("\n".join(lines or LINES), encoding="utf-8")
    given = {"tokenizer": "char", "seq_len": 32, "val_fraction": 0.1, "document": "line", **settings}
    return DataConfig(source="text", path=str(folder / "a&b.txt"), **given)


@pytest.fixture
def summary(tmp_path):
    return inspect_data(text_config(tmp_path))


def rows_config(path: Path, rows: list[dict[str, str]], **settings) -> DataConfig:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return DataConfig(source="csv", path=str(path), tokenizer="byte", seq_len=64, val_fraction=0.2, **settings)


def test_the_numbers_are_those_of_the_store(summary):
    numbers = summary.to_dict()
    store = summary.store
    assert json.loads(json.dumps(numbers)) == numbers
    assert numbers["source"] == summary.config.path
    assert numbers["tokenizer"] == "char"
    assert numbers["kind"] == "text"
    assert numbers["vocab_size"] == store.tokenizer.vocab_size
    assert numbers["train_documents"] + numbers["val_documents"] == len(LINES)
    assert numbers["train_tokens"] == len(store.train)
    assert numbers["val_tokens"] == len(store.val)
    assert numbers["train_characters"] + numbers["val_characters"] == sum(map(len, LINES))
    assert numbers["test_tokens"] == numbers["test_documents"] == numbers["test_characters"] == 0
    # A newline stands between documents, and between them only.
    assert numbers["train_tokens"] == numbers["train_characters"] + numbers["train_documents"] - 1
    assert numbers["bytes_per_token"] == pytest.approx(store.bytes_per_token())
    assert numbers["entropy_floor"] is None
    assert numbers["fingerprint"] == store.fingerprint
    assert numbers["store"] == str(store.folder)


def test_bytes_and_characters_are_told_apart(summary):
    more = inspect_data(summary.config.model_copy(update={"tokenizer": "byte"})).to_dict()
    assert more["train_tokens"] > summary.to_dict()["train_tokens"]
    assert more["train_characters"] == summary.to_dict()["train_characters"]
    assert more["vocab_size"] == 256


def test_the_text_is_the_first_tokens(summary):
    assert summary.text() == summary.store.tokenizer.decode(summary.store.train[:32].tolist())


def test_the_example_shows_the_shift_by_one(summary):
    inputs, ids, labels = summary.example(tokens=60).rows
    assert [inputs[0], ids[0], labels[0]] == ["input token", "input id", "label"]
    assert inputs[2:] == labels[1:-1]
    assert list(ids[1:]) == [str(i) for i in summary.store.train[:60].tolist()]
    assert {"\\n", "\\t"} <= set(inputs)  # what cannot be seen is written out
    assert len(inputs) == len(ids) == len(labels) == 61


def test_the_example_of_a_text_shorter_than_asked_for(summary):
    assert len(summary.example(tokens=10**6).rows[0]) == len(summary.store.train)


def test_in_a_terminal(summary):
    text = repr(summary)
    numbers = summary.to_dict()
    assert str(summary) == text
    assert f"{numbers['train_tokens']:,} tokens ({numbers['train_characters']:,} characters, " in text
    assert f"char, {numbers['vocab_size']} different tokens, 1.0" in text
    assert "an epoch, of 32 tokens" in text
    assert "Quality: " in text
    assert summary.text() in text
    assert "The label of each token is the token after it, for a model" in text
    assert "best possible loss" not in text


def test_in_a_notebook_everything_is_escaped(summary):
    html = summary._repr_html_()
    assert "<b>Tom" not in html
    assert "a&b.txt" not in html
    assert "a&amp;b.txt" in html
    for tag in ("table", "details", "div", "tr"):
        assert html.count(f"<{tag}") == html.count(f"</{tag}>") > 0


def test_stories_say_how_good_a_model_can_be():
    summary = inspect_data(DataConfig(tokenizer="char", size=10_000, val_fraction=0.2, seq_len=64))
    numbers = summary.to_dict()
    assert numbers["source"] == "stories"
    assert numbers["entropy_floor"] == summary.store.entropy_floor > 0
    assert f"best possible loss  {numbers['entropy_floor']:.4f} nats per token" in str(summary)
    assert summary.text().startswith("\n")
    assert numbers["quality"]["worst"] == "ok"


def test_auto_tells_what_it_came_to_mean():
    summary = inspect_data(DataConfig(tokenizer="auto", size=10_000, val_fraction=0.2, seq_len=64), quality=False)
    assert summary.to_dict()["tokenizer"] == "bpe"


def test_drift_of_validation_text_from_elsewhere(tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("\n".join(f"ZWEI UND {i} SIND MEHR ALS EINS" for i in range(300)), encoding="utf-8")
    config = text_config(tmp_path, val_from=str(other))
    report = inspect_data(config).drifts[0]
    assert report.title == "Validation beside training text"
    assert report["shares"].severity == "warning"
    assert inspect_data(config, quality=False).drifts == ()
    same = inspect_data(text_config(tmp_path), against=other)
    assert same.drifts[-1].title == f"{other} beside training text"
    assert same.drifts[-1]["shares"].severity == "warning"


def test_documents_tell_how_full_their_rows_are(tmp_path):
    rows = [{"prompt": f"What is {i} and {i}?", "completion": f"It is {2 * i}."} for i in range(80)]
    summary = inspect_data(rows_config(tmp_path / "p.csv", rows))
    numbers = summary.to_dict()
    assert numbers["kind"] == "pairs"
    assert numbers["examples"]["packing"] == "documents"
    assert 0.5 < numbers["examples"]["fill"] <= 1
    assert numbers["examples"]["documents"] == numbers["train_documents"]
    assert f"packed, {100 * numbers['examples']['fill']:.0f} % of the places filled" in str(summary)


def test_classes_are_listed(tmp_path):
    rows = [{"text": f"film number {i} was {'good' if i % 2 else 'dull'}", "label": str(i % 2)} for i in range(60)]
    summary = inspect_data(rows_config(tmp_path / "c.csv", rows, task="classification"))
    assert summary.to_dict()["classes"] == ["0", "1"]
    assert ("classes", "2: 0, 1") in summary.table().rows
    assert summary.quality is not None
    assert summary.quality["classes"].severity == "ok"


def test_what_was_left_out_is_said(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [json.dumps({"text": f"a line of text with number {i} in it"}) for i in range(50)]
    path.write_text("\n".join([*rows, '{"text": 3}', "{broken", '{"text": " "}', *rows[:5]]), encoding="utf-8")
    given = {"tokenizer": "byte", "seq_len": 32, "val_fraction": 0.2, "text_field": "text"}
    config = DataConfig(source="jsonl", path=str(path), **given)
    with pytest.raises(ValueError, match="rows.jsonl line 52: not JSON"):
        inspect_data(config)
    summary = inspect_data(config.model_copy(update={"on_bad_row": "skip", "duplicates": "drop"}))
    first, empty, copies = summary.store.warnings()
    assert first.startswith("left out: 2 rows that could not be used; the first: ")
    assert "line 51: column text holds the number 3" in first
    assert "line 52: not JSON" in first
    assert empty == "left out: 1 empty document"
    assert copies == "left out: 5 documents like an earlier one"
    assert "left out" in str(summary)


def test_a_page_of_its_own(tmp_path, summary):
    page = summary.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page
    assert "What a model gets: 2 examples of at most 32 tokens" in page


def test_a_store_alone_says_its_sizes(tmp_path):
    config = text_config(tmp_path)
    found = describe_store(open_store(config), config)
    assert found.quality is None
    assert found.to_dict()["train_tokens"] == len(found.store.train)


def test_it_raises_as_the_store_does(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        inspect_data(DataConfig(tokenizer="char", source="text", path=str(tmp_path / "none")))


def test_what_is_not_learned_is_shown_as_only_read(tmp_path):
    rows = [{"prompt": f"say {i}", "completion": f"<{i}>"} for i in range(60)]
    found = inspect_data(rows_config(tmp_path / "pairs.csv", rows, packing="documents"), quality=False)
    assert "the token after it" not in str(found)  # of a prompt nothing is learned
    assert "  read    s|a|y|" in str(found)
    assert "only read" in found._repr_html_()
    assert str(found.save(tmp_path / "page.html").read_text(encoding="utf-8")).count("What a model gets") == 1


def test_the_class_of_an_example_is_shown(tmp_path):
    rows = [{"text": f"number {i}", "label": "odd" if i % 2 else "even"} for i in range(60)]
    found = inspect_data(rows_config(tmp_path / "classes.csv", rows, task="classification"), quality=False)
    assert "its class is" in str(found)
    assert "The label of each token" not in str(found)


def test_too_little_to_validate_on_is_said(tmp_path):
    rows = [{"prompt": f"say {i}", "completion": f"<{i}>"} for i in range(60)]
    config = rows_config(tmp_path / "pairs.csv", rows, packing="documents").model_copy(update={"val_fraction": 0.05})
    found = describe_store(open_store(config), config)
    assert f"only {found.store.val.documents} documents to validate on" in str(found.table())
    assert "data.val_fraction=0.1" in str(found.table())
    assert "to validate on," not in str(describe_store(found.store, config.model_copy(update={"val_fraction": 0.2})))
