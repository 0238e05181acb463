"""Text comes in exactly as it is in the files, split once, and its key changes with every byte."""

import pytest

from utils.config.schema import DataConfig
from utils.data.sources import VAL_STORIES, load_corpus, read_text, source_key, split, text_files
from utils.data.stories import read_stories, story_nats, write_stories


def text_config(path, **more):
    return DataConfig(source="text", path=str(path), **more)


def whole(path, **more):
    corpus = load_corpus(text_config(path, **more))
    return corpus.train + corpus.val


# -- files -----------------------------------------------------------------------------------------


def test_a_file_is_read_whatever_its_ending(tmp_path):
    (tmp_path / "book.log").write_text("one\ntwo\n")
    assert text_files(tmp_path / "book.log") == [tmp_path / "book.log"]
    assert whole(tmp_path / "book.log") == "one\ntwo\n"


def test_a_folder_is_every_txt_and_md_below_it_in_order_of_name(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "folder.txt").mkdir()
    for name in ("b.txt", "a.md", "sub/c.txt", "z.py", "notes", "d.json", "folder.txt/e.md"):
        (tmp_path / name).write_text(name)
    found = [str(path.relative_to(tmp_path)) for path in text_files(tmp_path)]
    assert found == ["a.md", "b.txt", "folder.txt/e.md", "sub/c.txt"]
    assert whole(tmp_path) == "a.md\nb.txt\nfolder.txt/e.md\nsub/c.txt"


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^data.path={tmp_path}/none: no such file or folder$"):
        load_corpus(text_config(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        source_key(text_config(tmp_path / "none"))


def test_a_folder_without_text_says_what_it_looks_for(tmp_path):
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(FileNotFoundError, match=rf"^data.path={tmp_path} holds no .txt or .md file; to read a file"):
        load_corpus(text_config(tmp_path))


@pytest.mark.parametrize("content", ["", " \n\t\r\n ", "\ufeff", "\ufeff\n", "\u3000"])
def test_a_file_without_text_is_empty(tmp_path, content):
    (tmp_path / "empty.txt").write_text(content, encoding="utf-8")
    text = f"^data.path={tmp_path}/empty.txt is empty: there is no text to learn from$"
    with pytest.raises(ValueError, match=text):
        load_corpus(text_config(tmp_path / "empty.txt"))


@pytest.mark.parametrize(
    "text", ["a\r\nb\r\n", "a\rb\n", "tab\tend", "é😀", "e\u0301", "no end", "\x0c\x1f\x7f", "a\ufeffb", "\u2028\x85x"]
)
def test_a_text_is_kept_character_for_character(tmp_path, text):
    (tmp_path / "book.txt").write_bytes(text.encode())
    assert read_text(tmp_path / "book.txt") == text


def test_only_the_byte_order_mark_at_the_beginning_is_dropped(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbftwo")
    assert read_text(tmp_path / "a.txt") == "one"
    assert whole(tmp_path) == "one\n\ufefftwo"


@pytest.mark.parametrize(
    ("data", "byte", "offset"),
    [
        ("né".encode("latin-1"), "0xe9", "1"),
        (b"x" * 12_345 + "é tout".encode("latin-1"), "0xe9", "12,345"),
        ("hello".encode("utf-16"), "0xff", "0"),
        ("hello".encode("utf-16-le"), "0x00", "1"),
        ("hello".encode("utf-16-be"), "0x00", "0"),
        ("hello".encode("utf-32-le"), "0x00", "1"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "0x89", "0"),
        (b"abc\x00def", "0x00", "3"),
        (b"a\x00b\xff", "0x00", "1"),
        (b"a\xffb\x00", "0xff", "1"),
        ("ok é".encode()[:-1], "0xc3", "3"),
        (b"\xed\xa0\x80", "0xed", "0"),
        (b"\xc0\xaf", "0xc0", "0"),
        (b"a\x00", "0x00", "1"),
    ],
)
def test_what_is_not_text_is_named_by_byte_and_offset(tmp_path, data, byte, offset):
    path = tmp_path / "book.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{path}: not UTF-8 text: byte {byte} at offset {offset}\\. Is it a binary"):
        load_corpus(text_config(path))


def test_one_bad_file_among_good_ones_is_the_one_named(tmp_path):
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=f"^{tmp_path}/b.txt: not UTF-8"):
        load_corpus(text_config(tmp_path))


# -- split -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fraction", "train", "val"),
    [
        ("0123456789", 0.3, "0123456", "789"),
        ("01234567\n9abcdefghij", 0.65, "01234567\n", "9abcdefghij"),
        ("0123456\n89", 0.3, "0123456\n", "89"),
        ("012345678\n", 0.3, "0123456", "78\n"),  # the line end is too near the end
        ("\n" * 10, 0.5, "\n" * 6, "\n" * 4),
        ("ab", 0.5, "a", "b"),
    ],
)
def test_the_cut_is_at_a_line_end_where_one_is_near(text, fraction, train, val):
    assert split(text, fraction) == (train, val)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3, 0.5, 0.9])
def test_the_split_loses_nothing_and_is_near_the_share(fraction):
    text = "".join(f"line {i}\n" for i in range(2_000))
    train, val = split(text, fraction)
    assert train + val == text
    assert train.endswith("\n")
    assert abs(len(val) - fraction * len(text)) <= 10


def test_a_long_line_after_the_cut_does_not_eat_the_validation_text():
    train, val = split("a\n" + "x" * 1_000 + "\n", 0.1)
    assert len(val) >= 40
    assert "\n" in train


# -- key -------------------------------------------------------------------------------------------


def test_the_key_knows_the_bytes_and_the_share_and_nothing_else(tmp_path):
    path, copy = tmp_path / "a.txt", tmp_path / "elsewhere.txt"
    path.write_bytes(b"some text")
    copy.write_bytes(b"some text")
    key = source_key(text_config(path))
    assert len(key) == 64
    assert int(key, 16) >= 0
    assert source_key(text_config(copy)) == key
    assert source_key(text_config(path, seed=3, size=5_000, tokenizer="byte", seq_len=7)) == key
    assert source_key(text_config(path, val_fraction=0.06)) != key
    path.write_bytes(b"some texu")
    assert source_key(text_config(path)) != key


def test_the_key_of_a_folder_knows_where_files_end(tmp_path):
    keys = set()
    for i, parts in enumerate([("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab")]):
        folder = tmp_path / str(i)
        folder.mkdir()
        for j, part in enumerate(parts):
            (folder / f"{j}.txt").write_text(part)
        keys.add(source_key(text_config(folder)))
    assert len(keys) == 4


def test_the_key_of_stories_knows_size_seed_and_share():
    configs = [
        DataConfig(),
        DataConfig(size=1_999_999),
        DataConfig(seed=1),
        DataConfig(val_fraction=0.051),
    ]
    assert len(set(map(source_key, configs))) == 4
    assert source_key(DataConfig(tokenizer="byte", seq_len=8)) == source_key(DataConfig())


# -- stories ---------------------------------------------------------------------------------------


def test_stories_are_split_into_parts_that_share_none():
    corpus = load_corpus(DataConfig(size=60_000, val_fraction=0.25))
    parts = []
    for text in (corpus.train, corpus.val):
        ends = [reading.end for reading in read_stories(text)]
        parts.append({text[a:b] for a, b in zip([0, *ends], ends, strict=False)})
    assert len(parts[0]) > 50
    assert len(parts[1]) > 15
    assert not parts[0] & parts[1]


def test_stories_have_the_sizes_asked_for_and_their_exact_probability():
    corpus = load_corpus(DataConfig(size=60_000, val_fraction=0.25, seed=3))
    assert 15_000 <= len(corpus.val) < 17_000
    assert 45_000 <= len(corpus.train) < 47_000
    assert corpus.val == write_stories(15_000, 3, start=VAL_STORIES)
    assert corpus.val_nats == story_nats(corpus.val) > 0


def test_text_files_have_no_known_probability(tmp_path):
    (tmp_path / "a.txt").write_text("some text\n" * 9)
    assert load_corpus(text_config(tmp_path)).val_nats is None
