"""From a token store to the batches of a run: every packing, task, mixture and world size on real stores."""

import functools
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.config.schema import DataConfig
from utils.data.batching.tasks import Batch, TaskBatches, build_batches, eval_on
from utils.data.storing.token_store import TokenStore, open_store

WORDS = "the cat dog runs over a lazy fox and bird in tree house river stone unbelievable".split()  # noqa: SIM905
PLAIN = {"packs_documents": False, "supports_attention_mask": True}
PACKS = {"packs_documents": True, "supports_attention_mask": False}
COMMON = {"seq_len": 24, "vocab_size": 300, "val_fraction": 0.1, "test_fraction": 0.1, "duplicates": "ignore"}


def words(least: int, most: int) -> str:
    return " ".join(random.choice(WORDS) for _ in range(random.randint(least, most)))


def row(kind: str) -> dict:
    if kind == "pairs":
        return {"prompt": words(3, 20) + "?", "answer": words(1, 10) + "."}
    if kind == "labelled":
        return {"text": words(1, 60), "label": random.choice(["bad", "fair", "good"])}
    turns = random.randint(1, 3)
    said = [
        [{"role": "user", "content": words(2, 9)}, {"role": "assistant", "content": words(1, 9)}] for _ in range(turns)
    ]
    return {"messages": [message for pair in said for message in pair]}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    random.seed(0)
    for kind in ("pairs", "labelled", "chat"):
        lines = [json.dumps(row(kind)) for _ in range(300)]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "letters.txt").write_text("\n".join(words(1, 60) for _ in range(400)), encoding="utf-8")
    numbers = [" ".join(str(random.randint(0, 9999)) for _ in range(random.randint(1, 30))) for _ in range(90)]
    (folder / "numbers.txt").write_text("\n".join(numbers), encoding="utf-8")
    return folder


def config(files: Path, kind: str, **more) -> DataConfig:
    letters, numbers = str(files / "letters.txt"), str(files / "numbers.txt")
    source = {
        "text": {"source": "text", "path": letters, "document": "line"},
        "mixture": {
            "mixture": [
                {"source": "text", "path": letters, "document": "line", "weight": 3},
                {"source": "text", "path": numbers, "document": "line", "weight": 1},
            ]
        },
        "pairs": {
            "source": "jsonl",
            "path": str(files / "pairs.jsonl"),
            "text_field": "prompt",
            "target_field": "answer",
        },
        "labelled": {"source": "jsonl", "path": str(files / "labelled.jsonl"), "label_field": "label"},
        "chat": {"source": "jsonl", "path": str(files / "chat.jsonl")},
    }[kind]
    return DataConfig(**COMMON, **source, **more)


@functools.cache
def opened(key: str) -> TokenStore:
    """Opening checks every byte, and packing or order change none of them."""
    return open_store(DataConfig.model_validate_json(key))


def store_of(data: DataConfig) -> TokenStore:
    same = {"packing": "auto", "curriculum": "off", "seq_len": 24}
    return opened(data.model_copy(update=same).model_dump_json())


def made(data: DataConfig, task: str, facts: dict, size: int = 4, accumulate: int = 2, seed: int = 7) -> TaskBatches:
    facts = {"n_classes": 3, **facts}
    return build_batches(store_of(data), data, size, accumulate, seed, task, **facts)[0]


def rows_of(batch: Batch) -> list[tuple]:
    """The examples of a batch without their padding: what of each goes in, and what is asked."""
    found = []
    told = batch.extra.get("documents", batch.extra.get("attention_mask", torch.ones_like(batch.inputs[0])))
    for i, real in enumerate(told > 0):
        labels = batch.labels[i] if batch.labels.ndim == 2 else batch.labels[i : i + 1]
        if len(batch.inputs) == 2:  # an answer ends where its labels do
            labels = labels[labels != -100]
            others: tuple = tuple(batch.inputs[1][i, : len(labels)].tolist())
        else:
            others = tuple(told[i][real].tolist())
            labels = labels[real] if batch.labels.ndim == 2 else labels
        found.append((tuple(batch.inputs[0][i][real].tolist()), others, tuple(labels.tolist())))
    return found


KINDS = {
    "blocks": ("text", "causal", PLAIN, {}),
    "packed documents": ("text", "causal", PACKS, {"packing": "documents"}),
    "documents": ("text", "causal", PLAIN, {"packing": "documents"}),
    "curriculum": ("text", "causal", PLAIN, {"packing": "documents", "curriculum": "length"}),
    "packed curriculum": ("text", "causal", PACKS, {"packing": "documents", "curriculum": "length"}),
    "masked": ("text", "masked", PLAIN, {}),
    "masked documents": ("labelled", "masked", PLAIN, {}),
    "halves": ("text", "seq2seq", PLAIN, {}),
    "pairs": ("pairs", "seq2seq", PLAIN, {}),
    "pairs, causal": ("pairs", "causal", PACKS, {}),
    "chat": ("chat", "causal", PLAIN, {}),
    "packed chat": ("chat", "causal", PACKS, {}),
    "labelled": ("labelled", "classification", PLAIN, {}),
    "mixture": ("mixture", "causal", PLAIN, {}),
    "mixture of documents": ("mixture", "masked", PLAIN, {"packing": "documents"}),
    "packed mixture": ("mixture", "causal", PACKS, {"packing": "documents", "curriculum": "length"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_batch_is_the_same_for_any_world_and_accumulation(files, kind):
    source, task, facts, more = KINDS[kind]
    data = config(files, source, **more)
    one = made(data, task, facts, 8, 1)
    others = [made(data, task, facts, *shape) for shape in ((1, 8), (2, 4), (4, 2), (8, 1))]
    for step in (0, one.examples_per_epoch // 8, 10**6):  # the second has examples of two epochs
        wanted = Counter(example for batch in one.micro_batches(step) for example in rows_of(batch))
        assert sum(wanted.values()) == 8
        for batches in others:
            for world in (1, 2, 3, 4):
                shares = [batches.micro_batches(step, rank, world) for rank in range(world)]
                assert all(1 <= len(b.labels) <= batches.batch_size for share in shares for b in share)
                found = Counter(example for share in shares for batch in share for example in rows_of(batch))
                assert found == wanted, (step, batches.batch_size, world)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_the_same_whatever_was_asked_before(files, kind):
    source, task, facts, more = KINDS[kind]
    data = config(files, source, **more)
    used, fresh = made(data, task, facts), made(data, task, facts)
    for k in (900, 0, 3, 2, 500):
        used.batch(k)
    for k in (0, 500, 3):
        one, two = used.batch(k), fresh.batch(k)
        assert rows_of(one) == rows_of(two)
        assert one.inputs[0].shape[0] == 4
        assert one.inputs[0].shape[1] <= data.seq_len
    assert rows_of(made(data, task, facts, seed=8).batch(0)) != rows_of(fresh.batch(0))


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith("blocks") and "mixture" not in k])
def test_an_epoch_of_documents_has_each_example_once(files, kind):
    source, task, facts, more = KINDS[kind]
    if task == "masked":
        task, facts = "causal", PLAIN  # the same rows, without the draws
    data = config(files, source, **{"packing": "documents", **more})
    batches = made(data, task, facts, 1, 8)
    n = batches.examples_per_epoch
    epochs = [Counter(rows_of(batches.batch(e * n + k))[0] for k in range(n)) for e in range(2)]
    assert epochs[0] == epochs[1]
    assert batches.tokens_per_epoch == n * data.seq_len
    if task == "causal":
        ids = store_of(data).train
        asked = Counter(t for example, times in epochs[0].items() for t in example[2] * times if t != -100)
        whole = np.asarray(ids)
        counted = np.ones(len(ids), dtype=bool)
        if ids.answers is not None:
            counted = np.asarray(ids.answers) == 1
        elif ids.targets is not None:
            counted = np.concatenate(
                [np.arange(b - a) >= t for a, b, t in zip(ids.starts, ids.starts[1:], ids.targets, strict=False)]
            )
        counted[ids.starts[:-1]] = False
        assert asked == Counter(whole[counted].tolist())


# -- evaluation ------------------------------------------------------------------------------------


def asked_in(batches: TaskBatches) -> list[int]:
    labels = [batches.batch(i).labels for i in range(len(batches))]
    return [int(t) for batch in labels for t in batch.flatten() if t != -100]


@pytest.mark.parametrize("side", ["val", "test"])
@pytest.mark.parametrize("facts", [PLAIN, PACKS], ids=["alone", "packed"])
@pytest.mark.parametrize("kind", ["text", "mixture"])
def test_evaluation_asks_for_every_token_once(files, side, facts, kind):
    data = config(files, kind)
    store = store_of(data)
    text = [np.asarray(store.side(side, part)) for part in range(len(store.weights))]
    batches = eval_on(store, data, side, 5, "causal", **facts)
    assert asked_in(batches) == [int(t) for part in text for t in part[1:]]  # in order
    documents = data.model_copy(update={"packing": "documents"})
    batches = eval_on(store, documents, side, 5, "causal", **facts)
    ids = store.side(side)
    assert Counter(asked_in(batches)) == Counter(np.delete(np.asarray(ids), ids.starts[:-1]).tolist())
    fewer = eval_on(store, documents, side, 5, "causal", **facts, max_batches=2)
    assert len(fewer) == 2


def test_evaluation_batches_are_of_like_length_and_keep_their_hidden_tokens(files):
    data = config(files, "labelled")
    store = store_of(data)
    batches = eval_on(store, data, "val", 4, "classification", **PLAIN, n_classes=3)
    fills = [batch.extra["attention_mask"].float().mean() for batch in map(batches.batch, range(len(batches)))]
    assert np.mean(fills) > 0.9
    assert batches.describe()["fill"] == pytest.approx(np.mean(fills), abs=0.05)
    assert sorted(asked_in(batches)) == sorted(store.val.labels.tolist())
    masked = [eval_on(store, data, "val", size, "masked", **PLAIN) for size in (4, 7)]
    assert sorted(asked_in(masked[0])) == sorted(asked_in(masked[1]))


# -- mixtures and curricula ------------------------------------------------------------------------


def test_a_mixture_has_its_proportions_and_never_mixes_in_a_row(files):
    data = config(files, "mixture", tokenizer="byte")
    batches = made(data, "causal", PLAIN, 100, 10)
    digits = torch.tensor(list(b"0123456789"))
    share = [torch.isin(batches.batch(k).inputs[0], digits).any(1) for k in range(10)]
    assert int(torch.cat(share).sum()) == 250  # one in four, exactly so in every thousand
    told = batches.describe()
    assert told["packing"] == "blocks"
    assert told["examples_per_epoch"] == told["rows"]


def test_a_curriculum_starts_with_the_short_ones(files):
    data = config(files, "text", packing="documents", curriculum="length").model_copy(update={"seq_len": 400})
    for facts in (PLAIN, PACKS):
        batches = made(data, "causal", facts, 1, 8)
        n = batches.examples_per_epoch
        longest = [max(Counter(rows_of(batches.batch(k))[0][1]).values()) for k in range(2 * n)]
        first, second = np.array(longest[:n]), np.array(longest[n:])
        assert (np.diff(first) >= 0).all()
        assert (np.diff(second) < 0).any()


# -- what the model and the user say ---------------------------------------------------------------


def test_what_a_model_is_told(files):
    text, chats = config(files, "text"), config(files, "chat")
    assert made(text, "causal", PACKS).batch(0).extra == {}
    assert set(made(chats, "causal", PACKS).batch(0).extra) == {"documents"}
    assert set(made(chats, "causal", PLAIN).batch(0).extra) == {"attention_mask"}
    neither = {"packs_documents": False, "supports_attention_mask": False}
    assert made(chats, "causal", neither).batch(0).extra == {}
    assert made(chats, "causal", PACKS).describe()["fill"] > 0.9
    assert made(chats, "causal", PLAIN).describe()["packing"] == "one document per row"


def test_the_mask_is_the_row_after_the_last_unless_the_tokenizer_has_one(files):
    data = config(files, "text")
    store: TokenStore = store_of(data)
    assert store.tokenizer.mask_id is None
    (ids,), labels, _ = made(data, "masked", PLAIN, 64).batch(0)
    assert int(ids.max()) == store.tokenizer.vocab_size
    special = torch.tensor(list(store.tokenizer.special_tokens.values()))
    assert len(special)
    assert not torch.isin(labels, special).any()


@pytest.mark.parametrize(
    ("kind", "task", "more", "message"),
    [
        ("pairs", "seq2seq", {"packing": "blocks"}, r"packing=blocks does not fit .*seq2seq.*packing=documents"),
        ("labelled", "classification", {"packing": "blocks"}, r"packing=blocks .*classification.*packing=documents"),
        ("text", "classification", {}, r"classification needs a label for each text.*kind: text.*data\.label_field"),
        ("pairs", "classification", {}, r"kind: pairs.*data\.label_field"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(files, kind, task, more, message):
    with pytest.raises(ValueError, match=message):
        made(config(files, kind, **more), task, PLAIN)


def test_a_classifier_with_too_few_classes_is_refused(files):
    with pytest.raises(ValueError, match=r"2 classes apart and these documents have 3 \(bad, fair, good\)"):
        made(config(files, "labelled"), "classification", {**PLAIN, "n_classes": 2})


def test_a_side_without_documents_says_how_to_get_some(files):
    data = config(files, "text").model_copy(update={"test_fraction": 0.0})
    with pytest.raises(ValueError, match=r"no test documents.*data\.test_fraction"):
        eval_on(store_of(data), data, "test", 4, "causal", **PLAIN)
