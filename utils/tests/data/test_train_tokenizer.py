"""The five kinds: lossless on any text, the same on every run, bounded in size and time, readable by transformers."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.reading.stories import write_stories
from utils.data.tokenizing.round_trip import count_loss
from utils.data.tokenizing.text_pieces import PIECE
from utils.data.tokenizing.tokenizer import END, KINDS, TRAINED, UNKNOWN, Tokenizer, build_tokenizer, load_tokenizer
from utils.data.tokenizing.train_tokenizer import LONGEST_WORD, suggest_vocab_size

ROOT = Path(__file__).parents[3]
STORIES = write_stories(60_000)
LOOKS_SPECIAL = "a <|endoftext|> b <|im_start|> ## ▁ Ġ Ċ [UNK] <0x0A> …ing \ufffd"
ODD = st.one_of(
    st.text(),
    st.text(st.sampled_from(" \n\r\t\0'#▁Ġ\ufffd\u0301😀é漢ab1<|endoftext>_")),
    st.just(LOOKS_SPECIAL),
    st.sampled_from(["👩‍👩‍👧‍👦🏳️‍🌈", "\r\n\r\n \r", "\x00\x1c\x85\u2028", "x" * 300, "don't  'S 'll", "٣٤ Ⅷ ²"]),
)


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenizer]:
    return {kind: build_tokenizer(kind, STORIES + LOOKS_SPECIAL, 600, ("<|im_start|>",)) for kind in KINDS}


@pytest.fixture(scope="module")
def folders(made, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("kinds")
    for kind, tokenizer in made.items():
        (root / kind).mkdir()
        tokenizer.save(root / kind)
        # As in a checkpoint: a config.json of ours, which transformers does not know.
        (root / kind / "config.json").write_text('{"format": 1, "kind": "llama", "shape": {"n_layer": 2}}')
    return {kind: root / kind for kind in KINDS}


@settings(deadline=None, max_examples=150)
@given(ODD)
def test_every_text_comes_back_exactly(made, text):
    for kind in KINDS[1:]:
        ids = made[kind].encode(text)
        assert made[kind].decode(ids) == text, kind
        assert not set(ids) & set(made[kind].special_tokens.values()), f"{kind}: text became a special token"
    assert made["byte"].encode(text) == list(text.encode())


@settings(deadline=None, max_examples=60)
@given(ODD)
def test_char_gives_back_what_it_saw(text):
    tokenizer = build_tokenizer("char", iter([text[:2], text[2:]]))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == len(set(text) | {UNKNOWN})


@settings(deadline=None, max_examples=60)
@given(text=ODD)
def test_saved_and_loaded_and_through_transformers_the_ids_are_the_same(made, folders, text, auto):
    for kind in KINDS:
        ours, loaded, theirs = made[kind], load_tokenizer(folders[kind]), auto[kind]
        ids = ours.encode(text)
        assert loaded.encode(text) == ids
        assert theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids)
        if "<|" not in text:  # transformers reads the names of special tokens in a text, unless it is told not to
            assert theirs(text, add_special_tokens=False)["input_ids"] == ids


@pytest.fixture(scope="module")
def auto(folders):
    transformers = pytest.importorskip("transformers")
    return {kind: transformers.AutoTokenizer.from_pretrained(folder) for kind, folder in folders.items()}


def test_transformers_knows_the_special_tokens(made, auto):
    for kind in TRAINED:
        assert (auto[kind].eos_token, auto[kind].eos_token_id) == (END, made[kind].end_id)
        assert auto[kind](f"a{END}<|im_start|>")["input_ids"][-2:] == [0, 1]
        assert len(auto[kind]) == made[kind].vocab_size
    assert (auto["byte"].eos_token, auto["char"].eos_token) == (None, None)
    assert len(auto["byte"]) == 256


def test_special_tokens_are_the_first_ids_and_count(made):
    for kind in TRAINED:
        assert made[kind].vocab_size == 600
        assert made[kind].special_tokens == {END: 0, "<|im_start|>": 1}
        assert (made[kind].end_id, made[kind].pad_id, made[kind].mask_id, made[kind].bos_id) == (0, None, None, None)
        assert made[kind].decode([0, 1]) == f"{END}<|im_start|>"
    for kind in ("char", "byte"):
        assert (made[kind].special_tokens, made[kind].end_id) == ({}, None)
    char = build_tokenizer("char", "ab", 0, ("<|im_start|>",))
    assert char.unknown_characters("<|im_start|>") == ""  # it writes them as text


@pytest.mark.parametrize("kind", TRAINED)
def test_a_text_may_come_in_parts_and_a_vocabulary_is_bounded(kind):
    parts = build_tokenizer(kind, (STORIES[i : i + 7_000] for i in range(0, 14_000, 7_000)), 400)
    assert parts.vocab_size == 400
    assert build_tokenizer(kind, "", 300).vocab_size == build_tokenizer(kind, [], 257).vocab_size == 257
    assert build_tokenizer(kind, "abab" * 9, 300).vocab_size <= 300
    assert build_tokenizer(kind, STORIES[:30_000]).vocab_size <= suggest_vocab_size(30_000)
    stories = write_stories(20_000, seed=1)
    assert len(stories) / len(parts.encode(stories)) > 1.7  # words it learned, not bytes


@pytest.mark.parametrize("kind", TRAINED)
def test_wrong_requests_are_said_in_words(kind):
    with pytest.raises(ValueError, match=f"data.vocab_size=257 is too small for a {kind} tokenizer: 258 or more"):
        build_tokenizer(kind, "text", 257, ("<|im_end|>",))
    for token in ("abc", "", "<|é|>", "<a\n>"):
        with pytest.raises(ValueError, match="could be taken for ordinary text: write it with brackets"):
            build_tokenizer(kind, "text", 300, (token,))
    with pytest.raises(ValueError, match="data.tokenizer=wordpeace cannot be trained: choose one of char, byte, bpe"):
        build_tokenizer("wordpeace", "text", 300)


PROGRAM = """
import hashlib, sys
from pathlib import Path
from utils.data.reading.stories import write_stories
from utils.data.tokenizing.tokenizer import KINDS, build_tokenizer
for kind in KINDS:
    print(kind, build_tokenizer(kind, [write_stories(60_000), "é😀 \\0 " * 99], 700).fingerprint)
"""


def test_the_same_text_makes_the_same_tokenizer_in_every_process():
    started = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                         env={**os.environ, **env})
        for env in ({}, {"TOKENIZERS_PARALLELISM": "false"}, {"RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "7"})
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in started]
    assert said[0].count("\n") == len(KINDS)
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("kind", KINDS)
def test_lone_surrogates_are_read_as_the_replacement_character(kind, made):
    for text, read in (("a\ud800b", "a\ufffdb"), ("\udfff", "\ufffd"), ("\ud83d\ude00", "😀")):
        assert made[kind].encode(text) == made[kind].encode(read)
        assert made[kind].encode_batch(["x", text]) == [made[kind].encode("x"), made[kind].encode(read)]
        assert [i for i, _, _ in made[kind].encode_spans(text)] == made[kind].encode(read)
    build_tokenizer(kind, "a\ud800b", 300)


@pytest.mark.parametrize("kind", TRAINED)
def test_pieces_leave_no_trace(kind, made):
    text = write_stories(PIECE + 30_000) + " two  spaces   and\n \n more\r\n\u00a0x" * 3000
    whole = made[kind]._backend.encode(text, add_special_tokens=False).ids
    assert made[kind].encode(text) == whole
    assert made[kind].encode_batch(["", text, "a b"])[1] == whole
    assert [i for i, _, _ in made[kind].encode_spans(text)] == whole


@pytest.mark.parametrize("kind", TRAINED)
def test_a_long_line_without_spaces_takes_no_minutes(kind, made):
    line = hashlib.sha256(b"x").hexdigest() * 1500 + "z" * 70_000 + "漢字かな" * 8_000
    start = time.process_time()
    ids = made[kind].encode(line)
    trained = build_tokenizer(kind, line, 400)
    assert time.process_time() - start < 20
    assert made[kind].decode(ids) == line == trained.decode(trained.encode(line))
    assert max(len(trained.token_text(i)) for i in range(trained.vocab_size)) <= LONGEST_WORD


def test_what_is_lost_is_counted():
    char = build_tokenizer("char", "helo wrd")
    assert count_loss(char, "hello world").lost == 0
    lost = count_loss(char, ["hello", "hello Bob"])
    assert (lost.characters, lost.lost, lost.kinds) == (14, 2, {"characters it does not know": 1})
    assert lost.examples == (("hello Bob", f"hello {UNKNOWN}o{UNKNOWN}"),)
    assert str(lost).startswith("2 of 14 characters do not come back (characters it does not know): 'hello Bob'")
    assert str(count_loss(char, [])) == "every text comes back exactly (0 characters tried)"
    assert json.dumps(lost.to_dict())
    assert count_loss(build_tokenizer("byte", ""), ["\ud800 " * 1000]).lost == 0


def test_words_begin_where_people_see_them():
    for kind in TRAINED:
        tokenizer = build_tokenizer(kind, STORIES, 500)
        begins, inside = tokenizer.begins_word()
        text = "\nOnce upon a time, Zyxwvut's wild.\nThen 漢字 é\u0301a"
        words, previous = [], False
        for token in tokenizer.encode(text):
            if begins[token] or not previous:
                words.append(b"")
            words[-1] += bytes(tokenizer.decode([token]), "utf-8") if tokenizer.decode([token]) != UNKNOWN else b"?"
            previous = inside[token]
        said = [word.decode() for word in words]
        assert said[:6] == ["\n", "Once", " upon", " a", " time", ","], kind
        assert said[6] == " Zyxwvut"
        assert "Then" in said
        assert not begins[tokenizer.encode("é")[0]]


def test_how_one_token_reads(made):
    byte = made["byte"]
    assert [byte.token_text(i) for i in (0x20, 0x41, 0x0A, 0xC3)] == [" ", "A", "\n", "\\xc3"]
    assert made["bpe"].token_text(made["bpe"].encode(" the")[0]) == " the"
    assert made["bpe"].token_text(0) == END
    assert made["char"].token_text(made["char"].encode("▁")[0]) == "▁"
    assert made["bpe"].token_text(10_000) == ""


def test_the_suggested_size_grows_with_the_text():
    sizes = [suggest_vocab_size(10**n) for n in range(12)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (512, 65_536)
    assert all(size % 64 == 0 for size in sizes)
    assert suggest_vocab_size(1_000_000) == 1984


def test_real_text_is_learned_well():
    path = ROOT.parent / "shared" / "data" / "wikitext2-valid.txt"
    if not path.exists():
        pytest.skip("needs ../shared/data/wikitext2-valid.txt, which a clone does not have")
    text = path.read_text(encoding="utf-8")
    learned, held = text[:150_000], text[400_000:430_000]
    rates = {kind: len(held.encode()) / len(build_tokenizer(kind, learned, 1024).encode(held)) for kind in TRAINED}
    assert all(rate > 2.2 for rate in rates.values()), rates
