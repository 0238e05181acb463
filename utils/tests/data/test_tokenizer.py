"""Text to ids and back without a change; a vocabulary saved is the vocabulary loaded."""

import json

import pytest

from utils.data.tokenizing.tokenizer import PIECE, UNKNOWN, build_tokenizer, load_tokenizer

NASTY = [
    "",
    "plain",
    " leading and trailing ",
    "  two  spaces  ",
    "\n\n\t\r\n\r",
    "\x00\x01\x1f\x7f",
    "é e\u0301 ﬁ Å \u212b",
    "😀👩‍👩‍👧‍👦🏳️‍🌈🇩🇪",
    "مرحبا עברית हिन्दी ไทย 漢字かな",
    "\u200b\u200d\ufeff\u2028\x85\xa0\u3000",
    UNKNOWN,
    "\U0010ffff\uffff\ufffe",
    "<|endoftext|> [UNK] <s> ##ing Ġword ▁word",
    "'\"\\/{}",
    "".join(map(chr, range(0x250))),
]


@pytest.fixture(scope="module")
def byte():
    return build_tokenizer("byte", "")


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_byte_ids_are_the_bytes_and_decode_to_the_text(byte, text):
    assert byte.encode(text) == list(text.encode())
    assert byte.decode(byte.encode(text)) == text


def test_every_byte_has_its_value_as_id(byte):
    assert byte.vocab_size == 256
    text = "".join(map(chr, range(0x800))) + "\U00010000\U000fffff\U0010ffff\u0fff\uffff"
    assert byte.encode(text) == list(text.encode())
    lead = [*range(0xC0), *range(0xC2, 0xE0)]
    assert set(lead) <= set(byte.encode(text))


def test_bytes_that_are_not_utf8_become_the_replacement_character(byte):
    assert byte.decode([0xFF]) == UNKNOWN
    assert byte.decode(list("é".encode())[:1]) == UNKNOWN
    assert byte.decode([65, 0xC3, 66]) == f"A{UNKNOWN}B"
    assert byte.decode([]) == ""


def test_a_byte_tokenizer_knows_everything(byte):
    assert byte.unknown_characters("".join(NASTY)) == ""


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_char_gives_its_own_text_back(text):
    char = build_tokenizer("char", text)
    ids = char.encode(text)
    assert len(ids) == len(text)
    assert char.decode(ids) == text
    assert char.vocab_size == len(set(text) | {UNKNOWN})
    assert char.unknown_characters(text) == ""


def test_char_ids_are_in_order_of_code_point():
    char = build_tokenizer("char", "cab\n")
    assert char.encode("\nabc") == [0, 1, 2, 3]
    assert char.encode(UNKNOWN) == [4]


def test_the_order_of_the_text_does_not_matter_to_the_vocabulary():
    assert build_tokenizer("char", "abc").fingerprint == build_tokenizer("char", "ccbbaa").fingerprint


def test_a_character_never_seen_is_unknown():
    char = build_tokenizer("char", "hello world")
    assert char.decode(char.encode("hello, Bob 😀")) == f"hello{UNKNOWN} {UNKNOWN}o{UNKNOWN} {UNKNOWN}"
    assert char.unknown_characters("hello, Bob, 😀B") == ",Bb😀"
    assert char.unknown_characters("") == ""
    assert char.unknown_characters("hello") == ""


@pytest.mark.parametrize("kind", ["char", "byte"])
@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 7])
def test_a_long_text_is_cut_into_pieces_without_a_trace(kind, size):
    text = ("é😀e\u0301\r\nab" * (size // 8 + 1))[:size]
    tokenizer = build_tokenizer(kind, text)
    ids = tokenizer.encode(text)
    if kind == "byte":
        assert ids == list(text.encode())
    else:
        number = {c: i for i, c in enumerate(sorted(set(text) | {UNKNOWN}))}
        assert ids == [number[c] for c in text]
    near = slice(PIECE - 20, PIECE + 20)
    assert tokenizer.decode(tokenizer.encode(text[near])) == text[near]


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_loaded_is_saved(tmp_path, kind):
    text = "".join(NASTY)
    saved = build_tokenizer(kind, text)
    saved.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.vocab_size == saved.vocab_size
    for each in NASTY:
        assert loaded.encode(each) == saved.encode(each)
        assert loaded.decode(loaded.encode(each)) == each
    assert loaded.encode("\u1234") == saved.encode("\u1234")
    assert loaded.unknown_characters("a\u1234") == saved.unknown_characters("a\u1234")


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build_tokenizer("char", "some text").save(tmp_path / name)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "a" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["type"] == "WordLevel"


def test_fingerprints_tell_vocabularies_apart():
    prints = [build_tokenizer("char", text).fingerprint for text in ("abc", "abd", "ab", "")]
    prints += [build_tokenizer("byte", text).fingerprint for text in ("abc", "")]
    assert len(set(prints)) == 5
    assert prints[4] == prints[5]


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]", b'{"model": {"type": "none"}}', b"\x00" * 9, b"\xff\xfe"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{tmp_path}/tokenizer.json is not a tokenizer: "):
        load_tokenizer(tmp_path)


def test_a_tokenizer_cut_short_is_refused(tmp_path):
    build_tokenizer("byte", "").save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is not a tokenizer"):
        load_tokenizer(tmp_path)
