"""Examples of each task: right by construction, and a pure function of (seed, number)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.batching.batches import EvalBatches, Once, Running, TrainBatches
from utils.data.batching.examples import Blocks, Documents
from utils.data.batching.order import Shuffled
from utils.data.batching.questions import Causal, Classified, Masked, Question, Seq2Seq, Shown
from utils.data.batching.tasks import Batch, TaskBatches
from utils.data.storing.tokens import Shard, Tokens
from utils.data.tokenizing.tokenizer import build_tokenizer, tokens_needed

IDS = np.arange(1000, dtype=np.uint16) % 97
MASK = 97
QUICK = settings(deadline=None, max_examples=30)


def blocks(question: Question, seq_len: int = 32, size: int = 8, seed: int = 1) -> TaskBatches:
    return TaskBatches(TrainBatches(IDS, seq_len, size, seed), question)


def once(ids: Tokens, question: Question, size: int = 4, **how) -> TaskBatches:
    return TaskBatches(Once(Documents(ids, bounds=[(0, len(ids))], **how), size), question)


def side(documents: list[list[int]], **more) -> Tokens:
    ids = np.concatenate([np.array(d, dtype=np.uint16) for d in documents])
    starts = np.cumsum([0, *map(len, documents)])
    return Tokens([Shard(ids, len(ids), ids.dtype)], starts, **more)


def marks(bits: list[int]) -> Tokens:
    array = np.array(bits, dtype=np.uint8)
    return Tokens([Shard(array, len(array), array.dtype)])


def same(a: Batch, b: Batch) -> bool:
    flat = [(*x.inputs, x.labels, *x.extra.values()) for x in (a, b)]
    return all(p.shape == q.shape and torch.equal(p, q) for p, q in zip(*flat, strict=True))


# -- causal ----------------------------------------------------------------------------------------


def test_causal_is_what_the_blocks_are():
    plain = TrainBatches(IDS, 32, 8, 1)
    batch = TaskBatches(plain).batch(3)
    assert torch.equal(batch.inputs[0], plain.batch(3)[0])
    assert torch.equal(batch.labels, plain.batch(3)[1])
    assert batch.extra == {}
    assert batch.inputs[0].is_contiguous()
    assert batch.labels.is_contiguous()


def test_the_end_of_the_text_is_padding_that_is_never_counted():
    val = TaskBatches(EvalBatches(IDS[:70], 32, 4), Causal(pad=5, shown=Shown(attention_mask=True)))
    (ids,), labels, extra = val.batch(0)
    assert len(val) == 1
    assert ids[2, 5:].tolist() == [5] * 27
    assert labels[2].tolist() == IDS[65:70].tolist() + [-100] * 27
    assert extra["attention_mask"].sum(1).tolist() == [32, 32, 5]
    told = TaskBatches(EvalBatches(IDS[:70], 32, 4), Causal(shown=Shown(documents=True)))
    assert told.batch(0).extra == {}  # running text is one document


def test_packed_documents_are_told_apart():
    ids = side([[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    batch = once(ids, Causal(0, Shown(documents=True)), seq_len=8, packed=True).batch(0)
    (inputs,), labels, extra = batch
    assert inputs.shape == (1, 8)
    pairs = {(int(a), int(b)) for a, b in zip(inputs[0], labels[0], strict=True)}
    assert pairs == {(1, 2), (2, 3), (4, 5), (6, 7), (7, 8), (8, 9), (0, -100)}
    assert sorted(extra["documents"][0].tolist()) == [0, 0, 1, 1, 1, 2, 2, 3]  # the longest comes first


def test_a_document_alone_in_a_row_is_padded_to_the_longest():
    ids = side([[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    (inputs,), labels, extra = once(ids, Causal(0, Shown(attention_mask=True)), seq_len=8).batch(0)
    assert inputs.tolist() == [[1, 2, 0], [4, 0, 0], [6, 7, 8]]
    assert labels.tolist() == [[2, 3, -100], [5, -100, -100], [7, 8, 9]]
    assert extra["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert once(ids, Causal(), seq_len=8).batch(0).extra == {}  # a model that takes no mask is given none


def test_only_answers_are_learned():
    documents = [[1, 2, 3, 4], [5, 6, 7]]
    pairs = side(documents, targets=np.array([2, 1]))
    (inputs,), labels, _ = once(pairs, Causal(), seq_len=8).batch(0)
    assert inputs.tolist() == [[1, 2, 3], [5, 6, 0]]
    assert labels.tolist() == [[-100, 3, 4], [6, 7, -100]]
    chats = side(documents, answers=marks([0, 1, 0, 1, 0, 0, 1]))
    assert once(chats, Causal(), seq_len=8).batch(0).labels.tolist() == [[2, -100, 4], [-100, 7, -100]]
    for ids, wanted in (
        (pairs, [-100, 3, 4, -100, 6, 7]),
        (chats, [2, -100, 4, -100, -100, 7]),
    ):  # in running text, too
        text = TaskBatches(Once(Blocks(ids, 6, None, [(0, 7)]), 1))
        assert text.batch(0).labels.tolist() == [wanted]


# -- masked ----------------------------------------------------------------------------------------


def test_masked_asks_for_the_tokens_it_hides():
    plain, _ = TrainBatches(IDS, 32, 8, 1).batch(3)
    (ids,), labels, _ = blocks(Masked(MASK)).batch(3)
    asked = labels != -100
    assert torch.equal(labels[asked], plain[asked])
    assert torch.equal(ids[~asked], plain[~asked])  # what is not asked for is shown
    assert (ids[~asked] != MASK).all()


@pytest.mark.parametrize("fraction", [0.15, 0.4])
def test_masked_hides_as_bert_does(fraction):
    source = TrainBatches(IDS, 256, 64, 1)
    (ids,), labels, _ = TaskBatches(source, Masked(MASK, fraction)).batch(0)
    asked, shown = labels != -100, source.batch(0)[0]
    assert (asked.sum(1) == round(fraction * 256)).all()
    few = 0.03 if fraction < 0.2 else 0.02
    assert float((ids[asked] == MASK).float().mean()) == pytest.approx(0.8, abs=few)
    assert float((ids[asked] == shown[asked]).float().mean()) == pytest.approx(0.1 + 0.1 / MASK, abs=few)
    where = asked.float().mean(0)
    assert abs(float(where[:128].mean() - where[128:].mean())) < 0.03  # everywhere alike


def test_every_masked_example_asks_something():
    labels = blocks(Masked(MASK, 0.001)).batch(0).labels
    assert ((labels != -100).sum(1) == 1).all()


def test_special_tokens_are_never_hidden_and_never_put_in():
    special, pad = (0, 1, 2), 90
    documents = [[0, *np.random.default_rng(i).integers(3, 80, 20 + i).tolist(), 1] for i in range(60)]
    question = Masked(
        96, 0.5, others=np.arange(3, 80), special=special, pad=pad, shown=Shown(attention_mask=True), seed=4
    )
    batches = once(side(documents), question, size=60, seq_len=99, ahead=0)
    (ids,), labels, extra = batches.batch(0)
    asked, real = labels != -100, extra["attention_mask"] == 1
    assert not (asked & ~real).any()
    assert not torch.isin(labels[asked], torch.tensor(special)).any()
    assert (ids[~real] == pad).all()
    put_in = ids[asked & (ids != labels) & (ids != 96)]
    assert len(put_in) > 20
    assert 3 <= put_in.min() <= put_in.max() < 80
    words = torch.tensor([len(d) - 2 for d in documents])
    assert (asked.sum(1) == torch.round(words * 0.5)).all()
    nothing = once(side([[0, 1, 2], [0, 1]]), question, seq_len=8, ahead=0).batch(0)
    assert (nothing.labels == -100).all()  # nothing that could be hidden


def test_whole_words_are_hidden_together():
    text = "The unbelievable photographer, unbelievably; re-photographed 1234567 unphotographable umbrellas. " * 40
    tokenizer = build_tokenizer("bpe", text[:300] + " the of and", 290)
    ids = np.array(tokenizer.encode(text), dtype=np.uint16)
    begins, inside = tokenizer.begins_word()
    words, last = [], False  # a word is a space or sign and the letters and digits after it
    for token in ids.tolist():
        if begins[token] or not last:
            words.append(0)
        words[-1] += 1
        last = inside[token]
    assert max(words) > 3
    word_of = np.repeat(np.arange(len(words)), words)
    source = EvalBatches(ids, 200, 4)
    n = tokenizer.vocab_size
    batches = TaskBatches(
        Once(Blocks(source.ids, 200, None, [(0, len(ids))], 0), 8), Masked(n, 0.2, words=(begins, inside))
    )
    share = []
    for i in range(len(batches)):
        labels = batches.batch(i).labels.numpy()
        for row, label in enumerate(labels):
            first = (i * 8 + row) * 200
            own = word_of[first : first + 200]
            asked = label[: len(own)] != -100
            hidden = set(own[asked])
            assert asked.tolist() == [w in hidden for w in own]  # all of a word or nothing of it
            share.append(asked.mean() if len(own) == 200 else 0.2)
    assert np.mean(share) == pytest.approx(0.2, abs=0.02)
    assert max(abs(s - 0.2) for s in share) < 0.1


# -- seq2seq ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq_len", [1, 2, 7, 32])
def test_seq2seq_predicts_the_second_half_from_the_first(seq_len: int):
    plain, plain_labels = TrainBatches(IDS, seq_len, 8, 1).batch(2)
    (source, target), labels, extra = blocks(Seq2Seq(seq_len), seq_len=seq_len).batch(2)
    half = max(1, seq_len // 2)
    assert torch.equal(source, plain[:, :half])
    assert torch.equal(target[:, 0], source[:, -1])  # the decoder starts where the source ends
    assert torch.equal(target[:, 1:], plain[:, half:])
    assert torch.equal(labels, plain_labels[:, half - 1 :])
    assert extra == {}


def test_seq2seq_reads_a_prompt_and_writes_its_answer():
    ids = side([[1, 2, 3, 4, 5], [6, 7, 8], [9], [11, 12, 13, 14, 15, 16, 17]], targets=np.array([3, 1, 0, 4]))
    (source, target), labels, extra = once(
        ids, Seq2Seq(3, start_id=50, pairs=True, pad=0, attention_mask=True), seq_len=3, ahead=0, whole=True
    ).batch(0)
    assert source.tolist() == [[1, 2, 3], [6, 0, 0], [0, 0, 0], [11, 12, 13]]  # cut to 3 tokens each
    assert target[:, 0].tolist() == [50] * 4
    assert labels.tolist() == [[4, 5, -100], [7, 8, -100], [9, -100, -100], [15, 16, 17]]
    assert target[3].tolist() == [50, 15, 16]
    assert extra["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 1, 1]]
    question = Seq2Seq(3, pairs=True, pad=77)
    (_, target), _, extra = once(ids, question, seq_len=3, ahead=0, whole=True).batch(0)
    assert target[:, 0].tolist() == [3, 6, 77, 13]  # else with the last token that was read
    assert extra == {}


def test_what_a_seq2seq_model_reads_ends_as_the_tokenizer_ends_a_text():
    ids = side([[1, 2, 3, 4, 90], [6, 7, 90], [8, 90], [11, 12, 13, 14, 15, 90]], targets=np.array([3, 1, 0, 4]))
    how = {"seq_len": 4, "ahead": 0, "whole": True}
    question = Seq2Seq(4, start_id=50, pairs=True, attention_mask=True, suffix=(90,))
    (source, target), labels, extra = once(ids, question, **how).batch(0)
    assert source.tolist() == [[1, 2, 3, 90], [6, 90, 0, 0], [90, 0, 0, 0], [11, 12, 13, 90]]  # the cut one, too
    assert extra["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert labels.tolist() == [[4, 90], [7, 90], [8, 90], [15, 90]]
    assert target[:, 0].tolist() == [50] * 4
    (_, target), _, _ = once(ids, Seq2Seq(4, pairs=True, suffix=(90,)), **how).batch(0)
    assert target[:, 0].tolist() == [90] * 4  # the last token that was read
    plain, ended = (blocks(Seq2Seq(8, suffix=suffix), seq_len=8).batch(2) for suffix in ((), (90,)))
    assert torch.equal(ended.inputs[0][:, :-1], plain.inputs[0])
    assert (ended.inputs[0][:, -1] == 90).all()
    assert torch.equal(ended.labels, plain.labels)
    assert blocks(Seq2Seq(1, suffix=(90,)), seq_len=1).batch(0).inputs[0].shape == (8, 1)  # no room for it


def test_a_pair_without_an_answer_is_left_out():
    ids = side([[1, 2], [3, 4]], targets=np.array([2, 1]))
    batches = once(ids, Seq2Seq(4, pairs=True), seq_len=4, ahead=0, whole=True)
    assert batches.batch(0).labels.tolist() == [[4]]
    assert batches.describe()["documents_left_out"] == 1


# -- classification --------------------------------------------------------------------------------


def test_a_document_is_read_for_its_class():
    ids = side([[1, 5, 2], [1, 6, 7, 8, 9, 2], [1, 2]], labels=np.array([2, 0, 1]))
    question = Classified(4, suffix=(2,), pad=0, shown=Shown(attention_mask=True))
    batches = once(ids, question, seq_len=4, ahead=0, whole=True, answers_only=False)
    (inputs,), labels, extra = batches.batch(0)
    assert inputs.tolist() == [[1, 5, 2, 0], [1, 6, 7, 2], [1, 2, 0, 0]]  # what is cut still ends with its suffix
    assert labels.tolist() == [2, 0, 1]
    assert labels.dtype == torch.int64
    assert extra["attention_mask"].sum(1).tolist() == [3, 4, 2]
    assert batches.describe()["documents_cut"] == 1


# -- all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", [Masked(MASK, seed=3), Seq2Seq(32), Causal()], ids=lambda q: type(q).__name__)
def test_a_batch_is_a_function_of_seed_and_number(question):
    batches = blocks(question)
    first = batches.batch(5)
    batches.batch(6)
    assert same(first, batches.batch(5))
    assert same(first, blocks(question).batch(5))
    assert not same(first, batches.batch(6))
    assert not same(first, blocks(question, seed=2).batch(5))
    assert not same(blocks(Masked(MASK, seed=4)).batch(5), blocks(Masked(MASK, seed=5)).batch(5))


@QUICK
@given(sizes=st.lists(st.integers(2, 30), min_size=1, max_size=20), step=st.integers(0, 50), seed=st.integers(0, 9))
def test_micro_batches_are_the_batches_of_the_run(sizes, step, seed):
    ids = side([list(range(n)) for n in sizes])
    cut = Documents(ids, 8, [(0, len(ids))])
    batches = TaskBatches(Running(cut, Shuffled(cut.n, seed), 3), Masked(60, seed=seed), grad_accum_steps=4)
    for i, batch in enumerate(batches.micro_batches(step)):
        assert same(batch, batches.batch(step * 4 + i))
    shares = [batches.micro_batches(step, rank, 5) for rank in range(5)]
    assert [sum(len(b.labels) for b in share) for share in shares] == [3, 3, 2, 2, 2]
    assert [len(batches.micro_batches(step, rank, 20)) for rank in range(20)] == [1] * 12 + [0] * 8


def test_training_batches_have_no_length():
    with pytest.raises(TypeError, match="never end"):
        len(blocks(Causal()))


def test_a_mask_takes_one_more_row():
    assert tokens_needed("masked", 97) == 98
    assert tokens_needed("causal", 97) == tokens_needed("seq2seq", 97) == 97
