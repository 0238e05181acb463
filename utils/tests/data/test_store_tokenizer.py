"""A store's tokenizer is learned from a bounded part of the training documents, chosen by what they say."""

import json
import random

import numpy as np
import pytest

from utils.config.schema import DataConfig
from utils.data.storing import store_tokenizer
from utils.data.storing.survey import survey_of
from utils.data.storing.token_store import open_store
from utils.data.tokenizing.chat import DEFAULT_TEMPLATE
from utils.data.tokenizing.tokenizer import load_tokenizer


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
