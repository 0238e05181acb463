"""Documents packed into one row are scored as if each stood alone: logits, gradients, padding, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from utils.config.schema import ModelShape
from utils.models.documents import positions, same_document
from utils.models.registry import build_model

V = 40
SHAPE = ModelShape(n_layer=2, n_head=4, n_embd=32, n_hidden=64, block_size=24, vocab_size=V)
CHUNKED = [("bdh", {"chunk": 5}), ("bdh", {"chunk": 1})]
CASES = [("gpt", {}), ("llama", {}), ("llama", {"n_kv_head": 2}), ("bdh", {}), *CHUNKED]
EACH = pytest.mark.parametrize(("kind", "change"), CASES, ids=str)
LENGTHS = [[5, 1, 9], [24], [1, 1, 1, 20], [11, 3]]  # of the documents of each row; the rest of 24 is padding


def lively(kind: str, change: dict, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model with large weights, whose logits differ a lot."""
    torch.manual_seed(0)
    change = dict(change)
    chunk = change.pop("chunk", 0)
    model = build_model(kind, SHAPE.model_copy(update=change))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    if chunk:
        model.chunk = chunk
    return model.to(dtype)


def rows(lengths: list[list[int]], width: int = 24) -> tuple[Tensor, Tensor]:
    """Ids and documents (B, width)."""
    numbers = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, each in zip(numbers, lengths, strict=True):
        found = torch.repeat_interleave(torch.arange(1, len(each) + 1), torch.tensor(each))
        row[: len(found)] = found
    ids = torch.randint(V, numbers.shape, generator=torch.Generator().manual_seed(2))
    return ids, numbers


def alone(model: nn.Module, ids: Tensor, documents: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """(row, where in it, logits) of every document, each read by itself: the slow way, without any mask."""
    found = []
    for b, (row, numbers) in enumerate(zip(ids, documents, strict=True)):
        for number in range(1, int(numbers.max()) + 1):
            where = numbers == number
            found.append((b, where, model(row[where][None])[0]))
    return found


@EACH
@pytest.mark.parametrize("grad", [True, False])
def test_a_packed_document_is_scored_as_if_alone(kind: str, change: dict, grad: bool) -> None:
    model, (ids, documents) = lively(kind, change).eval(), rows(LENGTHS)
    with torch.set_grad_enabled(grad):
        packed = model(ids, documents=documents)
        assert packed.std() > 0.1
        for b, where, expected in alone(model, ids, documents):
            torch.testing.assert_close(packed[b, where], expected, rtol=0, atol=1e-9)
    assert torch.isfinite(packed).all()  # padding, too
    with torch.set_grad_enabled(grad):
        assert (model(ids)[0, 6:15] - packed[0, 6:15]).abs().max() > 1e-2  # the others do matter where nothing is apart


@EACH
def test_in_fp32_it_is_the_same_within_rounding(kind: str, change: dict) -> None:
    model, (ids, documents) = lively(kind, change, torch.float32).eval(), rows(LENGTHS)
    with torch.no_grad():
        packed = model(ids, documents=documents)
        for b, where, expected in alone(model, ids, documents):
            torch.testing.assert_close(packed[b, where], expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@EACH
def test_the_gradients_are_those_of_the_documents_alone(kind: str, change: dict) -> None:
    model, (ids, documents) = lively(kind, change), rows(LENGTHS)
    weight = torch.randn(*ids.shape, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (model(ids, documents=documents).tanh() * weight)[documents > 0].sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    sum((logits.tanh() * weight[b, where]).sum() for b, where, logits in alone(model, ids, documents)).backward()
    for name, p in model.named_parameters():
        assert torch.isfinite(packed[name]).all(), name
        assert p.grad.abs().max() > 1e-6, name
        torch.testing.assert_close(packed[name], p.grad, rtol=1e-8, atol=1e-9)


@EACH
def test_one_document_is_no_documents(kind: str, change: dict) -> None:
    model, (ids, _) = lively(kind, change).eval(), rows(LENGTHS)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, documents=torch.ones_like(ids)), model(ids), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["gpt", "llama", "bdh"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_padding_has_no_nan(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, (ids, documents) = build_model(kind, SHAPE), rows(LENGTHS)
    with torch.autocast("cpu", dtype=dtype):
        logits = model(ids, documents=documents)
        torch.testing.assert_close(logits.float(), model(ids.clone(), documents=documents).float())
    logits.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("kind", ["gpt", "llama", "bdh"])
def test_a_cache_or_another_shape_is_refused(kind: str) -> None:
    model, (ids, documents) = lively(kind, {}), rows(LENGTHS)
    from utils.inference.kv_cache import make_cache

    with pytest.raises(ValueError, match="documents and a cache do not go together"):
        model(ids, make_cache(model, len(ids)), documents)
    with pytest.raises(ValueError, match=r"documents has shape \(4, 23\) and input_ids \(4, 24\)"):
        model(ids, documents=documents[:, 1:])


def test_positions_begin_again_in_each_document() -> None:
    documents = torch.tensor([[1, 1, 1, 2, 3, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2]])
    assert positions(documents).tolist() == [[0, 1, 2, 0, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 4))
def test_positions_and_mask_agree_with_counting(lengths: list[int], padding: int) -> None:
    _, documents = rows([lengths], sum(lengths) + padding)
    row = documents[0].tolist()
    assert positions(documents)[0].tolist() == [row[:t].count(d) for t, d in enumerate(row)]
    same = same_document(documents)
    assert same.shape == (1, 1, len(row), len(row))
    assert same[0, 0].tolist() == [[a == b for a in row] for b in row]


def test_models_say_whether_they_keep_documents_apart() -> None:
    from utils.models.adapter import AdaptedModel

    assert all(build_model(kind, SHAPE).packs_documents for kind in ("gpt", "llama", "bdh"))
    assert AdaptedModel.packs_documents is False
