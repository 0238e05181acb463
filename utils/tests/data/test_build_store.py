"""Every kind of document becomes the ids it should, in any number of processes; what was done is not done again."""

import errno
import json
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config.schema import DataConfig
from utils.data.documents import SIDES
from utils.data.storing import build_store, encoders
from utils.data.storing.encode import Encoder, Manner, Unit, encode_unit
from utils.data.storing.shards import WORK
from utils.data.storing.token_store import open_store
from utils.data.tokenizing.chat import encode_chat
from utils.data.tokenizing.tokenizer import build_tokenizer

WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "fox",
    "dog",
    "cat",
    "sun",
    "moon",
    "sea",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sentences(count, seed=0):
    draw = random.Random(seed)
    return [f"{i} {' '.join(draw.choices(WORDS, k=12))}" for i in range(count)]


def rows(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def lines(path, texts, **more):
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    settings = {"source": "text", "path": str(path), "document": "line", "seq_len": 8, "vocab_size": 300}
    return DataConfig(**{**settings, "val_fraction": 0.2, **more})


def documents(tokens):
    return [tokens.document(d).tolist() for d in range(tokens.documents)]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- kinds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "wordpiece", "unigram"])
def test_all_documents_are_there_once_with_separators_between_them(tmp_path, kind):
    texts = sentences(200)
    store = open_store(lines(tmp_path / "a.txt", texts, tokenizer=kind, test_fraction=0.1))
    end = [store.tokenizer.end_id] if kind not in ("char", "byte") else store.tokenizer.encode("\n")
    found = []
    for side in SIDES:
        ids = documents(store.side(side))
        assert all(row[-1:] == end for row in ids[:-1])
        assert ids[-1][-1:] != end
        found += [store.tokenizer.decode(row[: -len(end)]) for row in ids[:-1]] + [store.tokenizer.decode(ids[-1])]
        assert len(ids) == store.info["documents"][side] > 5
    assert sorted(found) == sorted(texts)
    assert store.kind == "text"
    assert store.info["empties"] == store.info["left_out"] == store.info["skipped"]["count"] == 0


@pytest.mark.parametrize(("separator", "ids"), [("nothing", []), ("newline", "\n"), ("end", None), ("auto", None)])
def test_separators(tmp_path, separator, ids):
    store = open_store(lines(tmp_path / "a.txt", sentences(50), tokenizer="bpe", separator=separator))
    expected = [store.tokenizer.end_id] if ids is None else store.tokenizer.encode("".join(ids))
    for row in documents(store.train)[:-1]:
        text = store.tokenizer.decode(row[: len(row) - len(expected)])
        assert row == store.tokenizer.encode(text) + expected
        assert "\n" not in text


def test_a_newline_is_not_doubled(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(["one two three. " * 200, "four five six. " * 200, "seven. " * 400]))
    store = open_store(lines(tmp_path / "b.txt", sentences(3)).model_copy(update={"separator": "newline"}))
    assert not any(row[-2:] == store.tokenizer.encode("\n\n") for row in documents(store.train))
    manner, tokenizer = Manner("text", "uint16", (10,), True), build_tokenizer("byte", "")
    encoded = encode_unit(Unit("0-train/00000", ["a\n", "b", "c"], True), manner, Encoder(tokenizer, "uint16"))
    assert bytes(np.frombuffer(encoded.ids, np.uint16).astype(np.uint8)) == b"a\nb\nc"
    assert encoded.docs.tolist() == [[2, 2, 1]]
    assert encoded.text_bytes == 4


def test_an_end_token_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="data.separator=end needs a tokenizer with an end-of-text token, and data.to"):
        open_store(lines(tmp_path / "a.txt", sentences(20), tokenizer="char", separator="end"))


def test_what_a_tokenizer_puts_around_a_text_is_around_each_document(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[CLS]", "[SEP]", "?", *WORDS])}, "?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 0), ("[SEP]", 1)])
    (tmp_path / "own").mkdir()
    backend.save(str(tmp_path / "own" / "tokenizer.json"))
    config = lines(tmp_path / "a.txt", sentences(40), tokenizer=str(tmp_path / "own"), separator="nothing")
    store = open_store(config)
    assert all(row[0] == 0 and row[-1] == 1 and 3 in range(len(row)) for row in documents(store.train))
    assert store.train.documents + store.val.documents == 40
    with pytest.raises(ValueError, match="data.tokenizer=model is for a model that comes with a tokenizer"):
        open_store(config.model_copy(update={"tokenizer": "model"}))
    theirs = open_store(config.model_copy(update={"tokenizer": "model"}), own_tokenizer=tmp_path / "own")
    assert theirs.fingerprint == store.fingerprint


def test_pairs_know_where_the_answer_begins(tmp_path):
    texts = sentences(60)
    path = rows(tmp_path / "a.jsonl", [{"q": text, "a": f"yes {i}"} for i, text in enumerate(texts)])
    config = DataConfig(source="jsonl", path=path, text_field="q", target_field="a", vocab_size=300, val_fraction=0.2)
    store = open_store(config)
    assert store.kind == "pairs"
    found = {}
    for side in (store.train, store.val):
        for row, target in zip(documents(side), side.targets.tolist(), strict=True):
            assert row[-1] == store.tokenizer.end_id  # of the last one, too: where it ends is part of the answer
            found[store.tokenizer.decode(row[:target])] = store.tokenizer.decode(row[target:-1])
    assert found == {text: f"yes {i}" for i, text in enumerate(texts)}


def test_labels_are_numbers_of_classes_in_order(tmp_path):
    texts = sentences(60)
    path = rows(tmp_path / "a.jsonl", [{"text": text, "label": i % 11} for i, text in enumerate(texts)])
    store = open_store(DataConfig(source="jsonl", path=path, task="classification", vocab_size=300, val_fraction=0.2))
    assert store.kind == "labelled"
    assert store.labels == [str(i) for i in range(11)]  # 10 after 9
    for row, label in zip(documents(store.train), store.train.labels.tolist(), strict=True):
        assert texts.index(store.tokenizer.decode(row[:-1])) % 11 == label
    path = rows(tmp_path / "b.jsonl", [{"text": text, "label": "nb"[i % 2]} for i, text in enumerate(texts)])
    store = open_store(DataConfig(source="jsonl", path=path, task="classification", vocab_size=300, val_fraction=0.2))
    assert store.labels == ["b", "n"]


def test_chats_say_which_tokens_are_learned(tmp_path):
    chats = [
        [{"role": "user", "content": f"{text}?"}, {"role": "assistant", "content": f"<|im_end|> {i}"}]
        for i, text in enumerate(sentences(40))
    ]
    path = rows(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats])
    store = open_store(DataConfig(source="jsonl", path=path, vocab_size=300, val_fraction=0.2))
    assert store.kind == "chat"
    assert store.tokenizer.chat_template
    special, found = store.tokenizer.special_tokens, []
    for side in (store.train, store.val):
        assert len(side.answers) == len(side)
        for d in range(side.documents):
            span = slice(side.starts[d], side.starts[d + 1])
            ids, marks = side[span].tolist(), side.answers[span].astype(bool)
            chat = next(c for c in chats if encode_chat(c, store.tokenizer)[0] == ids[:-1])
            assert ids[-1] == store.tokenizer.end_id
            learned = side[span][marks].tolist()
            assert learned[-1] == special["<|im_end|>"]
            assert store.tokenizer.decode(learned[:-1]) == chat[1]["content"]
            assert special["<|im_end|>"] not in learned[:-1]  # in a message it is text
            found.append(chat)
    assert len(found) == 40
    with pytest.raises(ValueError, match=r"a.jsonl.*: the chat template leaves out message 1"):
        open_store(DataConfig(source="jsonl", path=path, vocab_size=300, chat_template="{{ messages[1]['content'] }}"))


def test_parts_of_a_mixture_stay_apart(tmp_path):
    parts = [
        {"source": "text", "path": rows(tmp_path / f"{i}.txt", sentences(50, i)), "document": "line"} for i in "ab"
    ]
    config = DataConfig(mixture=[{**parts[0], "weight": 3}, parts[1]], vocab_size=300, seq_len=8, val_fraction=0.2)
    store = open_store(config)
    assert store.weights == [3.0, 1.0]
    assert [len(store.side("train", part)) for part in (0, 1)] == [each["train"] for each in store.info["tokens"]]
    assert store.train[:].tolist() == [*store.side("train", 0)[:], *store.side("train", 1)[:]]
    assert store.side("val", 0).documents + store.side("val", 1).documents == store.val.documents
    lighter = config.model_copy(
        update={"mixture": [part.model_copy(update={"weight": 1.0}) for part in config.mixture]}
    )
    other = open_store(lighter)
    assert (other.folder, other.weights) == (store.folder, [1.0, 1.0])  # weights decide nothing on disk


def test_documents_of_two_kinds_are_refused(tmp_path):
    one = {"source": "text", "path": lines(tmp_path / "a.txt", sentences(9)).path, "document": "line"}
    two = {"source": "jsonl", "path": rows(tmp_path / "b.jsonl", [{"prompt": "a b", "completion": "c"}] * 3)}
    two |= {"text_field": "prompt", "target_field": "completion"}
    with pytest.raises(ValueError, match="the documents are of different kinds.*running text.*a pair with an answer"):
        open_store(DataConfig(mixture=[one, two]))


def test_blank_documents_copies_and_bad_rows_are_counted(tmp_path):
    texts = sentences(40)
    good = [json.dumps({"text": text}) for text in [*texts, "  \n ", "", *texts[:5]]]
    (tmp_path / "a.jsonl").write_text("\n".join([*good, "{broken"]) + "\n")
    config = DataConfig(source="jsonl", path=str(tmp_path / "a.jsonl"), on_bad_row="skip", vocab_size=300, seq_len=8)
    info = open_store(config.model_copy(update={"duplicates": "drop"})).info
    assert info["skipped"]["count"] == 1
    assert "a.jsonl" in info["skipped"]["first"][0]
    assert info["empties"] == 2
    assert info["left_out"] == 5
    assert sum(info["documents"].values()) == 40
    assert info["train_characters"] + info["val_characters"] == sum(map(len, texts))


# -- nothing lost, nothing doubled -----------------------------------------------------------------

alphabet = st.text(st.sampled_from("ab c\n\r\t'!1é漢😀\x1c\x85\xa0\u0301\0"), max_size=40)
TOKENIZERS = {
    kind: build_tokenizer(kind, "ab c\n\r\t'!1é漢😀\x1c abc's " * 9, 300) for kind in ("char", "bpe", "unigram")
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(texts=st.lists(alphabet, min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_the_fast_way_gives_the_ids_of_the_tokenizer(kind, texts):
    tokenizer = TOKENIZERS[kind]
    encoder, manner = Encoder(tokenizer, "uint16"), Manner("text", "uint16", (7, 8))
    encoded = encode_unit(Unit("0-train/00000", texts, True), manner, encoder)
    expected = [[*tokenizer.encode(text), 7, 8] for text in texts]
    expected[-1] = expected[-1][:-2]
    assert np.frombuffer(encoded.ids, np.uint16).tolist() == sum(expected[1:], expected[0])
    assert encoded.docs.tolist() == [[len(row) for row in expected]]
    assert encoded.text_bytes == sum(len(text.encode()) for text in texts)


def test_a_long_text_and_many_words_are_encoded_in_parts(monkeypatch):
    monkeypatch.setattr("utils.data.storing.encode.BATCH", 500)
    monkeypatch.setattr("utils.data.storing.encode.KNOWN_WORDS", 20)
    texts = [" ".join(sentences(300)), *sentences(40), "x" * 3000]
    for kind in ("bpe", "own"):
        tokenizer = build_tokenizer("bpe", texts, 400)
        tokenizer.origin["kind"] = kind  # of another kind, nothing is known of its words
        encoder = Encoder(tokenizer, "uint32")
        found = [np.frombuffer(ids, np.uint32).tolist() for ids in encoder.encode(texts)]
        assert found[:-1] == [tokenizer.encode(text) for text in texts[:-1]]
        assert tokenizer.decode(found[-1]) == texts[-1]
        assert len(encoder._known) < 400


# -- processes -------------------------------------------------------------------------------------


def small_units(monkeypatch, processes):
    monkeypatch.setattr(build_store, "UNIT", 3000)
    monkeypatch.setattr(build_store, "SMALL", 0 if processes > 1 else 1 << 40)
    monkeypatch.setattr(build_store, "cores", lambda: processes)


def test_any_number_of_processes_writes_the_same_bytes(tmp_path, monkeypatch):
    config, found = lines(tmp_path / "a.txt", sentences(600), tokenizer="bpe"), []
    for processes in (1, 2, 3):
        monkeypatch.setenv("TBT_CACHE", str(tmp_path / f"cache{processes}"))
        small_units(monkeypatch, processes)
        found.append(contents(open_store(config).folder))
    assert found[0] == found[1] == found[2]
    assert len([name for name in found[0] if name.endswith("ids.bin")]) > 10


def test_what_was_done_is_not_done_again(tmp_path, monkeypatch):
    config = lines(tmp_path / "a.txt", sentences(600), tokenizer="bpe")
    small_units(monkeypatch, 1)
    whole = open_store(config)
    expected = contents(whole.folder)
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "other"))
    made, real = [], encoders.make_shard

    def break_down(folder, unit, *rest):
        made.append(unit.name)
        if len(made) == 8:
            raise KeyboardInterrupt
        return real(folder, unit, *rest)

    monkeypatch.setattr(encoders, "make_shard", break_down)
    with pytest.raises(KeyboardInterrupt):
        open_store(config)
    (building,) = (tmp_path / "other" / "tokens").iterdir()  # the lock is gone
    damaged = building / f"{made[2]}.ids.bin"
    damaged.write_bytes(damaged.read_bytes()[:-2])
    (building / "0-train" / "00000.ids.bin.tmp-1-2").write_bytes(b"begun")
    for name in ("survey._look", "store_tokenizer.build_tokenizer"):
        monkeypatch.setattr(f"utils.data.storing.{name}", lambda *_: pytest.fail("done once more"))
    first = list(made)
    assert contents(open_store(config).folder) == expected
    assert made[8:] == [made[2], *made[8:][1:]]
    assert not set(made[8:]) & {name for i, name in enumerate(first) if i not in (2, 7)}
    assert not list((tmp_path / "other").rglob(WORK))


def test_a_process_that_is_killed_is_said_and_what_is_done_is_kept(tmp_path, monkeypatch):
    config = lines(tmp_path / "a.txt", sentences(600), tokenizer="bpe")
    small_units(monkeypatch, 2)
    real, sent = encoders._Worker.send, []

    def kill_it(worker, data):
        sent.append(data)
        if len(sent) == 8:
            worker.process.kill()
            worker.process.wait()
        real(worker, data)

    monkeypatch.setattr(encoders._Worker, "send", kill_it)
    with pytest.raises(ValueError, match=r"killed by signal 9 \(was there too little memory\?\): what is done is kept"):
        open_store(config)
    monkeypatch.setattr(encoders._Worker, "send", real)
    store = open_store(config)
    assert store.train.documents + store.val.documents == 600


def test_a_full_disk_is_said_and_what_is_done_is_kept(tmp_path, monkeypatch):
    config, real, written = lines(tmp_path / "a.txt", sentences(300), tokenizer="bpe"), encoders.make_shard, []
    small_units(monkeypatch, 1)

    def fill(folder, unit, *rest):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(unit.name)
        return real(folder, unit, *rest)

    monkeypatch.setattr(encoders, "make_shard", fill)
    with pytest.raises(ValueError, match="is full: make room, or set TBT_CACHE to a folder elsewhere. What is done"):
        open_store(config)
    monkeypatch.setattr(encoders, "make_shard", real)
    assert open_store(config).train.documents > 200
    monkeypatch.setattr(build_store.shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000))
    with pytest.raises(ValueError, match=r"the tokens need about 0.0 MB in .*, where 0.0 MB are free: make room"):
        open_store(config.model_copy(update={"tokenizer": "byte"}))


@pytest.mark.parametrize("processes", [1, 2])
def test_what_cannot_be_written_is_said_by_whichever_process(tmp_path, monkeypatch, processes):
    config = lines(tmp_path / "a.txt", sentences(300), tokenizer="bpe")
    small_units(monkeypatch, processes)
    store = open_store(config)
    building = store.folder.with_name(f"{store.folder.name}.building")
    store.folder.rename(building)  # as if the build were not yet done
    (building / "info.json").unlink()
    for path in (building / "0-val").iterdir():
        path.unlink()
    (building / "0-val").rmdir()
    (building / "0-val").touch()
    with pytest.raises(ValueError, match=r"the cache .*tokens cannot be written \(File exists\): set TBT_CACHE"):
        open_store(config)


def test_a_text_that_changes_between_the_passes_is_noticed(tmp_path, monkeypatch):
    config = lines(tmp_path / "a.txt", sentences(100), tokenizer="byte")
    real = build_store.units
    for change in ("longer\n", "", "more\nmore\n"):

        def units(documents, survey, change=change):
            with (tmp_path / "a.txt").open("w") as file:
                file.write("".join(f"{text}\n" for text in sentences(100)[: 50 if not change else 100]) + change)
            return real(documents, survey)

        monkeypatch.setattr(build_store, "units", units)
        with pytest.raises(ValueError, match="the text changed while it was read: run it again"):
            open_store(config)
        config = lines(tmp_path / "a.txt", sentences(100), tokenizer="byte")


def test_progress_is_told_in_order_and_sparingly(tmp_path):
    told = []
    open_store(lines(tmp_path / "a.txt", sentences(3000)), progress=lambda *words: told.append(words))
    what = list(dict.fromkeys(word for word, _, _ in told))
    assert what == ["reading", "comparing documents", "learning the vocabulary", "encoding"]
    assert told[-1][1] == told[-1][2] == sum(map(len, sentences(3000)))
    assert len(told) < 100
