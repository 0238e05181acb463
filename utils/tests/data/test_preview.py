"""What a model gets, as it is drawn: the batch's own tokens, which of them are learned, and all of it escaped."""

import csv
import json
import re
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest

from utils.config.schema import DataConfig
from utils.data.batching.tasks import build_batches
from utils.data.looking.preview import preview, preview_store, rows_of
from utils.data.storing.token_store import TokenStore, open_store


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))


def csv_config(folder: Path, rows: list[dict[str, str]], **settings) -> DataConfig:
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    given = {"tokenizer": "bpe", "vocab_size": 300, "seq_len": 64, "val_fraction": 0.2, **settings}
    return DataConfig(source="csv", path=str(path), **given)


def pairs(folder: Path, **settings) -> DataConfig:
    rows = [{"prompt": f"What is {i} and {i}?", "completion": f"It is {2 * i} <script>."} for i in range(60)]
    return csv_config(folder, rows, **settings)


def texts(folder: Path, **settings) -> DataConfig:
    rows = [{"text": f"Line {i}: a café, <script>alert('{i}')</script> & 😀\tend.\n"} for i in range(60)]
    return csv_config(folder, rows, **settings)


def said(page: str) -> str:
    """The text a page shows, tags aside."""
    return unescape(re.sub(r"<[^>]*>", "", page))


def batch_of(store: TokenStore, config: DataConfig, task: str, n: int = 1):
    train, _ = build_batches(store, config, n, 1, 0, task, packs_documents=True, supports_attention_mask=True)
    return train.batch(0)


def test_running_text_is_the_batch_itself(tmp_path):
    config = texts(tmp_path, packing="blocks")
    store = open_store(config)
    shown = preview_store(store, config)
    batch = batch_of(store, config, "causal")
    [row] = shown.rows
    assert [piece.id for piece in row.pieces] == [*batch.inputs[0][0].tolist(), batch.labels[0, -1].item()]
    assert [piece.kind for piece in row.pieces] == ["read", *["learned"] * config.seq_len]
    assert row.padding == 0


def test_only_answers_of_pairs_are_learned(tmp_path):
    config = pairs(tmp_path)
    shown = preview(config)
    [row] = shown.rows
    assert "documents, which do not see each other" in row.note
    end = open_store(config).tokenizer.end_id
    for document in {piece.document for piece in row.pieces}:
        own = [piece for piece in row.pieces if piece.document == document]
        read = "".join(piece.text for piece in own if piece.kind == "read")
        learned = "".join(piece.text for piece in own if piece.kind == "learned" and piece.id != end)
        assert re.fullmatch(r"What is (\d+) and \1\?", read)
        assert learned == f"It is {2 * int(re.findall(r'[0-9]+', read)[0])} <script>."
    text = str(shown)
    assert "\n  read    W" in text
    assert "\n  learned " in text
    assert "Faded tokens are only read" in text


def test_what_a_chat_answers_is_learned(tmp_path):
    path = tmp_path / "chats.jsonl"
    chats = [[{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": f"Yes {i}"}] for i in range(60)]
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats), encoding="utf-8")
    config = DataConfig(source="jsonl", path=str(path), tokenizer="bpe", vocab_size=300, seq_len=64, val_fraction=0.2)
    learned = "".join(piece.text for piece in preview(config).rows[0].pieces if piece.kind == "learned")
    assert "Yes" in learned
    assert "Hi" not in learned
    assert "user" not in learned


def test_hidden_tokens_are_framed_and_told(tmp_path):
    config = texts(tmp_path, task="masked")
    store = open_store(config)
    shown = preview_store(store, config)
    batch = batch_of(store, config, "masked")
    [row] = shown.rows
    asked = batch.labels[0] != -100
    assert [piece.kind == "hidden" for piece in row.pieces] == asked.tolist()
    hidden = [piece for piece in row.pieces if piece.kind == "hidden"]
    assert [piece.id for piece in hidden] == batch.labels[0][asked].tolist()  # what is to be found is shown
    assert any(piece.told == "the model sees '[MASK]'" for piece in hidden)
    assert f"{len(hidden)} of {len(row.pieces)} tokens are asked for" in str(shown)
    assert shown._repr_html_().count("outline:") == len(hidden)
    for piece in hidden:
        assert f"[{piece.text.translate({32: '·', 10: '⏎', 9: '⇥'})}]" in str(shown)


def test_what_is_read_and_what_is_written(tmp_path):
    config = pairs(tmp_path, task="seq2seq")
    read, written = preview(config).rows
    assert re.fullmatch(r"What is \d+ and \d+\?", "".join(piece.text for piece in read.pieces))
    assert {piece.kind for piece in written.pieces[1:]} == {"learned"}
    assert "It is " in "".join(piece.text for piece in written.pieces[1:])


def test_a_class_is_named(tmp_path):
    rows = [{"text": f"film number {i} was {'fine' if i % 2 else 'dull'}", "label": "bg"[i % 2]} for i in range(60)]
    shown = preview(csv_config(tmp_path, rows, task="classification"), n=3)
    assert len(shown.rows) == 3
    for row in shown.rows:
        text = "".join(piece.text for piece in row.pieces)
        assert row.note == f"its class is {'g' if 'fine' in text else 'b'!r}"


def test_pages_escape_and_show_what_cannot_be_seen(tmp_path):
    shown = preview(texts(tmp_path, packing="blocks"), n=2)
    page = shown._repr_html_()
    assert "<script" not in page
    assert page.count("<span") == page.count("</span>")
    assert page.count("<div") == page.count("</div>")
    for sign in ("·", "⏎", "⇥"):
        assert sign in said(page)
        assert sign in str(shown)
    assert all(f"token {piece.id}: " in page for row in shown.rows for piece in row.pieces)
    assert "example 1" in str(shown)
    assert "example 2" in str(shown)


def test_neighbours_never_have_the_same_colour(tmp_path):
    page = preview(texts(tmp_path, packing="blocks"))._repr_html_()
    colours = re.findall(r"background:rgba\(([\d,]+),", page)
    assert len(colours) == 65
    assert all(a != b for a, b in pairwise(colours))


def test_a_long_row_is_cut_and_says_so(tmp_path):
    config = texts(tmp_path, packing="blocks", tokenizer="byte", seq_len=500)
    shown = preview(config)
    assert "... and 101 more tokens" in str(shown)
    assert "… and 101 more tokens" in shown._repr_html_()


def test_padding_is_counted_and_not_drawn(tmp_path):
    config = pairs(tmp_path)
    store = open_store(config)
    batch = batch_of(store, config, "causal", 4)
    for row, documents in zip(rows_of(batch, "causal", store.tokenizer, n=4), batch.extra["documents"], strict=True):
        assert row.padding == int((documents == 0).sum())
        assert all(piece.document for piece in row.pieces)


def test_no_class_without_labels(tmp_path):
    with pytest.raises(ValueError, match="data.label_field"):
        preview(texts(tmp_path, task="classification"))
