"""Which document goes where: by what it says, never its copies on two sides, and never again elsewhere."""

import json
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config.schema import DataConfig
from utils.data.documents import Document
from utils.data.storing.splits import (
    FREE,
    LEFT_OUT,
    TEST,
    TRAIN,
    VAL,
    DocumentTable,
    TableBuilder,
    assign_sides,
    count_leaks,
    describe_sides,
)

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared" / "data"


def table_of(documents: list[Document] | list[str], batch: int = 1000) -> DocumentTable:
    builder = TableBuilder()
    rows = [Document(text=one) if isinstance(one, str) else one for one in documents]
    for i in range(0, len(rows), batch):
        builder.add(rows[i : i + batch])
    return builder.table()


def arrays_of(table: DocumentTable) -> list[np.ndarray]:
    return [table.content, table.characters, table.fixed, table.part, *table.keys]


def sides_of(documents: list[Document] | list[str], **settings) -> list[int]:
    return assign_sides(table_of(documents), DataConfig(source="text", path="x", **settings)).tolist()


def config(**settings) -> DataConfig:
    return DataConfig(source="text", path="x", **settings)


def long_text(seed: int, words: int = 80) -> str:
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(100_000)}" for _ in range(words))


def edited(text: str, seed: int, share: float = 0.01) -> str:
    draw, words = random.Random(seed), text.split()
    for i in draw.sample(range(len(words)), max(1, round(share * len(words)))):
        words[i] = draw.choice(["", f"other{draw.random()}", f"{words[i]} more"])
    return " ".join(words)


@cache
def with_own_side(side: int, another: int = 0) -> str:
    """A long text whose own hash is for this side, by the usual fraction or test_fraction=0.4."""
    for seed in range(77_000 + 1000 * another, 99_000):
        text = long_text(seed)
        share = int(table_of([text]).content[0]) / 2**64
        if {VAL: share < 0.05, TEST: 0.05 <= share < 0.45, TRAIN: share >= 0.45}[side]:
            return text
    raise AssertionError


def real_passages(count: int, words: int = 120) -> list[str]:
    path = SHARED / "wikitext2-valid.txt"
    if not path.exists():
        pytest.skip("needs ../shared/data")
    text = path.read_text(encoding="utf-8").split()
    return [" ".join(text[i * words : (i + 1) * words]) for i in range(count)]


def test_a_row_says_what_the_document_says():
    documents = [
        Document(text="one", side="val"),
        Document(text="one", part=2),
        Document(text=" \n\t"),
        Document(text="one", target="two"),
        Document(text="", messages=({"role": "user", "content": "one"}, {"role": "assistant", "content": "two"})),
        Document(text="one " * 40),
    ]
    table = table_of(documents)
    assert table.fixed.tolist() == [VAL, FREE, FREE, FREE, FREE, FREE]
    assert table.part.tolist() == [0, 2, 0, 0, 0, 0]
    assert table.characters.tolist() == [3, 3, 0, 7, 7, 160]
    assert table.content[0] == table.content[1]
    assert len(np.unique(table.content)) == 5
    assert (table.keys.words != 0).tolist() == [True, True, False, True, True, False]
    assert table.keys.long.tolist() == [5]


# ---- The table ----


def test_fields_of_a_document_do_not_run_together():
    chat = ({"role": "user", "content": "a"},)
    documents = [
        Document(text="ab", target="c"), Document(text="a", target="bc"), Document(text="abc"), Document(text="ab\nc"),
        Document(text="ab", label="c"), Document(text="ab"), Document(text="ab", target=""),
        Document(text="", messages=chat),
        Document(text="", messages=({"role": "assistant", "content": "a"},)), Document(text="", messages=chat * 2),
        Document(text='["ab", "c", null, null]'), Document(text='["ab", null, "c", null]'),
    ]  # fmt: skip
    assert len(np.unique(table_of(documents).content)) == len(documents)


def test_how_documents_are_batched_decides_nothing():
    texts = [long_text(i, 1 + i % 70) for i in range(200)]
    whole, pieces = table_of(texts), table_of(texts, batch=7)
    for one, other in zip(arrays_of(whole), arrays_of(pieces), strict=True):
        assert one.shape == other.shape
        assert (one == other).all()


def test_a_line_needs_23_bytes_and_nothing_is_kept_for_more():
    arrays = arrays_of(table_of([f"line {i}" for i in range(3000)], batch=700))
    assert sum(array.nbytes for array in arrays) == 23 * 3000
    assert all(array.base is None for array in arrays)


def test_a_table_that_is_made_takes_no_more_documents():
    builder = TableBuilder()
    builder.add([Document(text="one")])
    assert builder.table() is builder.table()
    with pytest.raises(AssertionError, match="already made"):
        builder.add([Document(text="two")])


# ---- By content ----


@pytest.mark.parametrize(("val", "test"), [(0.05, 0.0), (0.1, 0.2), (0.5, 0.4)])
def test_sides_have_the_share_that_was_asked_for(val: float, test: float):
    n = 2000
    sides = np.array(sides_of([f"document {i}" for i in range(n)], val_fraction=val, test_fraction=test))
    for side, share in ((VAL, val), (TEST, test)):
        assert abs((sides == side).sum() - n * share) <= 4 * np.sqrt(n * share * (1 - share))
    assert not (sides == LEFT_OUT).any()


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.randoms(), st.sets(st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=40), min_size=2))
def test_the_order_of_different_documents_decides_nothing(draw: random.Random, words: set[str]):
    first, second = sorted(words), draw.sample(sorted(words), len(words))
    one = dict(zip(first, sides_of(first, val_fraction=0.3, test_fraction=0.2), strict=True))
    assert one == dict(zip(second, sides_of(second, val_fraction=0.3, test_fraction=0.2), strict=True))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from(["together", "drop", "ignore"]), st.data())
def test_more_documents_move_none(seed: int, n: int, duplicates: str, data: st.DataObject):
    draw = random.Random(seed)
    texts = [long_text(draw.randrange(8), 60) for _ in range(n)]
    texts = [edited(text, i, draw.choice([0.02, 0.05, 0.08])) if i % 3 else text for i, text in enumerate(texts)]
    texts = [with_own_side(VAL), with_own_side(TRAIN), *texts]  # so that no side is empty
    cut = 2 + data.draw(st.integers(0, n))
    fractions = {"val_fraction": 0.05, "test_fraction": 0.4, "duplicates": duplicates}
    assert sides_of(texts[:cut], **fractions) == sides_of(texts, **fractions)[:cut]


def test_sides_are_the_same_in_every_process():
    code = (
        "import json, sys; from utils.config.schema import DataConfig; from utils.data.documents import Document;"
        "from utils.data.storing.splits import TableBuilder, assign_sides; builder = TableBuilder();"
        "builder.add([Document(text=text) for text in json.load(sys.stdin)]);"
        "print(assign_sides(builder.table(), DataConfig()).tolist())"
    )
    texts = [long_text(i % 90, i) for i in range(120)]
    said = {
        subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(texts), capture_output=True, text=True, check=True, cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("0", "4242")
    }  # fmt: skip
    assert said == {str(sides_of(texts))}


# ---- Copies ----


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 2**32), st.sampled_from(["together", "drop"]), st.sampled_from(["content", "position"]))
def test_no_copy_of_a_validation_document_is_trained_on(seed: int, duplicates: str, split_by: str):
    draw = random.Random(seed)
    count = draw.randrange(6, 40)
    kind = [draw.randrange(count // 2) for _ in range(count)]
    texts = [edited(long_text(k, 400), i, 0.0) if i % 2 else long_text(k, 400) for i, k in enumerate(kind)]
    fixed = [draw.choice(["", "", "", "val", "test"]) if i < 3 else "" for i in range(count)]
    documents = [Document(text=text, side=side) for text, side in zip(texts, fixed, strict=True)]
    if len({k for k, side in zip(kind, fixed, strict=True) if not side}) < 5:
        return
    table = table_of(documents)
    sides = assign_sides(table, config(val_fraction=0.2, test_fraction=0.2, duplicates=duplicates, split_by=split_by))
    held = {k for k, side in zip(kind, sides, strict=True) if side in (VAL, TEST)}
    trained = [k for k, side in zip(kind, sides, strict=True) if side == TRAIN]
    assert held
    assert trained
    assert not held & set(trained)
    assert count_leaks(table, sides) == 0
    assert all(sides[i] == {"val": VAL, "test": TEST}[side] for i, side in enumerate(fixed) if side)
    if duplicates == "drop":
        assert len(trained) == len(set(trained))


def test_real_passages_and_their_copies_do_not_leak():
    originals = real_passages(300)
    texts = [*originals, *(edited(text, i) for i, text in enumerate(originals)), *originals[:50]]
    table = table_of(texts)
    sides = assign_sides(table, config(val_fraction=0.2))
    assert (sides[300:600] == sides[:300]).all()
    assert (sides[600:] == sides[:50]).all()
    assert count_leaks(table, sides) == 0
    own = assign_sides(table, config(val_fraction=0.2, duplicates="ignore"))
    assert count_leaks(table, own) > 50  # what would have leaked
    said = describe_sides(table, sides)
    assert (said["exact_duplicates"], said["near_duplicates"], said["leaks"], said["left_out"]) == (50, 300, 0, 0)
    assert said["train"] + said["val"] == 650
    assert said["train_characters"] + said["val_characters"] == sum(map(len, texts))


def test_copies_go_where_the_first_goes():
    val, train = with_own_side(VAL), with_own_side(TRAIN)
    copies = [edited(val, i) for i in range(20)]
    texts = [val, train, *copies, train, val]
    assert sides_of(texts) == [VAL, TRAIN, *[VAL] * 20, TRAIN, VAL]
    assert sides_of(texts, duplicates="drop") == [VAL, TRAIN, *[LEFT_OUT] * 22]
    assert TRAIN in sides_of(texts, duplicates="ignore")[2:22]


def test_what_is_like_documents_of_two_sides_is_left_out():
    both = [with_own_side(VAL), with_own_side(TRAIN)]
    middle = long_text(1, 1000)
    documents = [middle[: len(middle) * 9 // 10] + " " + both[0], middle[len(middle) // 10 :] + " " + both[1]]
    for i in range(200):  # until the hashes say so
        ends = [documents[0] + f" {i}", documents[1]]
        if sorted(sides_of(ends, val_fraction=0.5)) == [TRAIN, VAL] and len(table_of(ends).similar().later) == 0:
            break
    sides = sides_of([*ends, middle, middle], val_fraction=0.5)
    assert sides[2:] == [LEFT_OUT, LEFT_OUT]


def test_what_the_source_holds_out_stays_and_nothing_like_it_is_trained_on():
    val, train, mine = with_own_side(VAL), with_own_side(TRAIN), with_own_side(VAL, 1)
    documents = [
        Document(text=train, side="val"), Document(text=train, side="test"),
        Document(text=edited(train, 1), side="val"), Document(text=train), Document(text=edited(train, 2)),
        Document(text=mine), Document(text=val),
    ]  # fmt: skip
    kept = [VAL, TEST, VAL]
    assert sides_of(documents) == [*kept, LEFT_OUT, LEFT_OUT, TRAIN, TRAIN]  # no more for validation: it has its own
    assert sides_of(documents, duplicates="drop") == [*kept, LEFT_OUT, LEFT_OUT, TRAIN, TRAIN]
    assert sides_of(documents, duplicates="ignore") == [*kept, TRAIN, TRAIN, TRAIN, TRAIN]
    late = [*documents[3:], *documents[:3]]  # wherever they stand
    assert sides_of(late) == [LEFT_OUT, LEFT_OUT, TRAIN, TRAIN, *kept]


def test_a_part_with_validation_of_its_own_gives_no_more_but_others_do():
    texts = [f"line {i}" for i in range(300)]
    own = [Document(text="story", side="val"), Document(text="more stories", side="train")]
    documents = [*own, *(Document(text=text, part=1) for text in texts)]
    sides = np.array(sides_of(documents, val_fraction=0.2))
    assert sides[:2].tolist() == [VAL, TRAIN]
    assert 30 < (sides[2:] == VAL).sum() < 90
    given_test = [Document(text="questions", side="test"), *(Document(text=text) for text in texts)]
    sides = np.array(sides_of(given_test, val_fraction=0.2, test_fraction=0.3))
    assert (sides == TEST).sum() == 1
    assert 30 < (sides == VAL).sum() < 90


def test_stories_are_never_left_out():
    text = long_text(3)
    assert sides_of([Document(text=text, side="val"), Document(text=text, side="train")]) == [VAL, TRAIN]


# ---- By position ----


def test_the_last_characters_are_for_validation_and_those_before_for_test():
    texts = [f"document number {i:03d}" for i in range(100)]
    sides = sides_of(texts, split_by="position", val_fraction=0.1, test_fraction=0.2)
    assert sides == [TRAIN] * 70 + [TEST] * 20 + [VAL] * 10
    texts[-1] *= 30  # characters count, not documents
    sides = sides_of(texts, split_by="position", val_fraction=0.1)
    assert sides == [TRAIN] * 99 + [VAL]


def test_each_part_gives_its_last_documents():
    documents = [Document(text=f"part {i // 10} document {i}", part=i // 10) for i in range(30)]
    sides = sides_of(documents, split_by="position", val_fraction=0.2)
    assert sides == ([TRAIN] * 8 + [VAL] * 2) * 3
    two = [Document(text="first", part=0), Document(text="second", part=0), Document(text="alone", part=1)]
    assert sides_of(two, split_by="position", val_fraction=0.01) == [TRAIN, VAL, TRAIN]


def test_a_copy_of_the_last_documents_is_not_trained_on():
    last, other = long_text(1), long_text(2)
    texts = [last, edited(last, 1), other, long_text(3), last]
    assert sides_of(texts, split_by="position") == [LEFT_OUT, LEFT_OUT, TRAIN, TRAIN, VAL]
    assert sides_of(texts, split_by="position", duplicates="drop") == [TRAIN, LEFT_OUT, TRAIN, VAL, LEFT_OUT]
    assert sides_of(texts, split_by="position", duplicates="ignore") == [TRAIN] * 4 + [VAL]


# ---- Few documents ----


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 9), st.sampled_from([(0.01, 0.0), (0.5, 0.49), (0.99, 0.0), (0.01, 0.98)]))
def test_two_documents_are_enough(seed: int, n: int, shares: tuple[float, float]):
    texts = [f"text {seed + i}" for i in range(n)]
    sides = sides_of([*texts, " ", ""], val_fraction=shares[0], test_fraction=shares[1])
    assert VAL in sides[:n]
    assert TRAIN in sides[:n]
    assert sides[n:] == [LEFT_OUT, LEFT_OUT]


def test_the_document_with_the_smallest_hash_is_for_validation_where_none_would_be():
    texts = [with_own_side(TRAIN, i) for i in range(5)]
    hashes = table_of(texts).content
    sides = sides_of([*texts, *(edited(text, 1) for text in texts)])
    assert sides == [VAL if i % 5 == hashes.argmin() else TRAIN for i in range(10)]
    more = sides_of([*texts, with_own_side(VAL)])  # only it gives its place away
    assert more == [TRAIN] * 5 + [VAL]


@pytest.mark.parametrize("documents", [["x", "x", " "], [long_text(1), edited(long_text(1), 2)], ["a cat sat"] * 50])
def test_where_all_are_alike_the_last_are_kept_and_called_leaks(documents: list):
    table = table_of(documents)
    sides = assign_sides(table, DataConfig(val_fraction=0.05))
    with_words = sides[table.characters > 0]
    assert with_words[-1] == VAL
    assert set(with_words) == {TRAIN, VAL}
    assert count_leaks(table, sides) == (with_words == TRAIN).sum()


@pytest.mark.parametrize(
    ("documents", "settings_", "message"),
    [
        (["x" * 5000], {}, "only one document.*5,000 characters.*data.document=passage"),
        (["x"], {"split_by": "position"}, "only one document"),
        ([" ", ""], {}, "every document is empty"),
        ([], {}, "every document is empty"),
        ([Document(text="a", side="val"), Document(text="a")], {}, "only one document"),
        (
            [Document(text="a", side="val"), Document(text="b", side="val"), Document(text="a")],
            {},
            "all 1 other documents are almost the same.*data.val_from",
        ),
        ([Document(text="a", side="val"), Document(text="b", side="test")], {}, "all documents are for validation"),
        (
            [Document(text="a"), Document(text="b", part=1)],
            {"split_by": "position"},
            "each source has only one document.*data.split_by=content",
        ),
    ],
)
def test_what_cannot_be_split_says_what_to_do(documents: list, settings_: dict, message: str):
    with pytest.raises(ValueError, match=message):
        sides_of(documents, **settings_)
