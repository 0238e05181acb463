"""A store's tokenizer is learned from a bounded part of the training documents, chosen by what they say."""

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from utils.config.schema import DataConfig
from utils.data.storing import encoders, store_tokenizer
from utils.data.storing.encode import Manner
from utils.data.storing.survey import survey_of
from utils.data.storing.token_store import open_store
from utils.data.tokenizing.chat import DEFAULT_TEMPLATE
from utils.data.tokenizing.tokenizer import END, build_tokenizer, load_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))


def config_of(path, texts, **more):
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    words = {"source": "text", "path": str(path), "document": "line", "seq_len": 4, "vocab_size": 300, **more}
    return DataConfig(**words)


def sample(folder, texts, enough):
    folder.mkdir()
    config = config_of(folder / "a.txt", texts, duplicates="ignore")
    survey = survey_of(folder, config, lambda *_: None)
    chosen = store_tokenizer._sample(survey, enough)
    assert not chosen[survey.sides != 0].any()
    return {text for text, taken in zip(texts, chosen, strict=True) if taken}, int(survey.characters[chosen].sum())


def test_the_sample_is_bounded_and_hangs_on_what_documents_say(tmp_path):
    texts = [f"{i} {'word ' * (i % 7)}" for i in range(500)]
    found, size = sample(tmp_path / "a", texts, 2_000)
    assert 2_000 <= size < 2_050
    again, _ = sample(tmp_path / "b", random.Random(1).sample(texts, len(texts)), 2_000)
    assert again == found
    assert not found <= set(texts[:250])  # from all over the text
    assert len(sample(tmp_path / "c", texts, 1)[0]) == 1
    assert len(sample(tmp_path / "d", texts, 10**9)[0]) > 450


def test_what_is_only_in_validation_documents_is_not_learned(tmp_path):
    (tmp_path / "val.txt").write_text("xylophone xylophone xylophone\n" * 50)
    config = config_of(tmp_path / "a.txt", [f"{i} the cat sat" for i in range(60)], val_from=str(tmp_path / "val.txt"))
    tokenizer = open_store(config).tokenizer
    assert len(tokenizer.encode(" xylophone")) == 10
    assert len(tokenizer.encode(" cat")) == 1


def test_char_knows_every_training_character_and_the_newline_between_documents(tmp_path):
    store = open_store(config_of(tmp_path / "a.txt", [f"{i}é" for i in range(30)] * 2, tokenizer="char"))
    assert "\ufffd" not in store.tokenizer.decode(store.train[:].tolist())
    assert store.tokenizer.vocab_size == len("0123456789é\n\ufffd")
    one = config_of(tmp_path / "b.txt", ["aé"], val_from=str(tmp_path / "a.txt"), seq_len=1, tokenizer="char")
    assert open_store(one).tokenizer.vocab_size == len("aé\n\ufffd")


def test_a_vocabulary_that_suits_the_text(tmp_path):
    texts = [" ".join(random.Random(i).choices(["ab", "cd", "ef"], k=5)) + f" {i}" for i in range(300)]
    store = open_store(config_of(tmp_path / "a.txt", texts, vocab_size=0))
    assert 257 < store.tokenizer.vocab_size <= 512
    assert np.asarray(store.train).max() < store.tokenizer.vocab_size == store.info["vocab_size"]


def test_the_chat_template_travels_with_the_tokenizer(tmp_path):
    chats = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i * i}"}] for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    config = DataConfig(source="jsonl", path=str(tmp_path / "a.jsonl"), vocab_size=300, val_fraction=0.2)
    store = open_store(config)
    assert load_tokenizer(store.folder).chat_template == DEFAULT_TEMPLATE
    own = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    other = open_store(config.model_copy(update={"chat_template": own}))
    assert other.folder != store.folder
    assert load_tokenizer(other.folder).chat_template == own
    assert other.tokenizer.decode(other.train.document(0).tolist()).startswith("user: ")


@pytest.mark.parametrize(("kind", "separator"), [("text", ()), ("pairs", (0,)), ("labelled", (0,)), ("chat", (0,))])
def test_an_answer_ends_even_where_the_end_token_also_begins_a_text(tmp_path, kind, separator):
    """OPT's tokenizer puts its one special token before a text, and nothing behind it."""
    build_tokenizer("bpe", "some words of text", 300).save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(f"{END} $A", None, [(END, 0)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.end_id, tokenizer.prefix, tokenizer.suffix) == (0, [0], [])
    assert store_tokenizer.separator_of(tokenizer, DataConfig(), kind) == (separator, False)


def test_a_process_that_encodes_knows_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    build_tokenizer("byte", "").save(tmp_path)
    worker = encoders._Worker(tmp_path, Manner("text", "uint16"), None)
    try:
        until = time.monotonic() + 60
        while not (variables := Path(f"/proc/{worker.process.pid}/environ").read_bytes()):  # not yet begun
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        worker.stop()
    assert b"TOKENIZERS_PARALLELISM" in variables
    assert b"HF_TOKEN" not in variables
