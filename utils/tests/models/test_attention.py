"""The plain form of attention is the fused kernel's function, and so are its gradients."""

import pytest
import torch
import torch.nn.functional as F

from utils.models import attention
from utils.models.attention import BlockedAttention, attend
from utils.models.documents import same_document


def both(shape: tuple[int, ...], dtype: torch.dtype, kv_heads: int | None = None) -> list[list[torch.Tensor]]:
    """Result and gradients of the plain form and of torch's, in fp32."""
    torch.manual_seed(0)
    B, H, T, D = shape
    given = [torch.randn(B, heads, T, D).to(dtype) for heads in (H, kv_heads or H, kv_heads or H)]
    weight, found = torch.randn(shape), []
    for plain in (True, False):
        q, k, v = (each.clone().requires_grad_() for each in given)
        if plain and kv_heads:
            y = attend(q, k, v)
        elif plain:
            y = BlockedAttention.apply(q, k, v, None)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=bool(kv_heads))
        (y.float() * weight).sum().backward()
        found.append([each.detach().float() for each in (y, q.grad, k.grad, v.grad)])
    return found


@pytest.mark.parametrize("T", [2, 5, 64])
@pytest.mark.parametrize("queries", [1, 4, 64])
def test_it_is_the_fused_kernel_s_function(T: int, queries: int, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", queries)
    for got, want in zip(*both((2, 3, T, 8), torch.float32), strict=True):
        assert torch.allclose(got, want, atol=2e-6)


def test_gradients_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", 2)
    qkv = [torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    documents = torch.tensor([[1, 1, 1, 2, 2]])
    for seen in (None, same_document(documents).tril()):
        assert torch.autograd.gradcheck(BlockedAttention.apply, (*qkv, seen))


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_in_bf16_it_is_as_near_to_fp32_as_the_fused_kernel(kv_heads: int | None):
    shape = (2, 4, 300, 16)  # more than one block, the last one shorter
    plain, fused = both(shape, torch.bfloat16, kv_heads)
    exact = both(shape, torch.float32, kv_heads)[1]
    for got, other, want in zip(plain, fused, exact, strict=True):
        assert (got - want).abs().mean() < 1.3 * (other - want).abs().mean() + 1e-6
        assert (got - want).abs().max() < 0.05


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("queries", [5, 64])
def test_a_mask_in_bf16_is_obeyed_as_the_fused_kernel_does(kv_heads: int, queries: int, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", queries)
    torch.manual_seed(0)
    q = torch.randn(2, 4, 12, 8, dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(2, kv_heads, 12, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    mask = torch.rand(2, 1, 12, 12).gt(0.5).tril() | torch.eye(12, dtype=torch.bool)
    found = []
    for y in (attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)):
        found.append([y, *torch.autograd.grad(y.float().square().sum(), (q, k, v))])
    for got, want in zip(*found, strict=True):
        assert torch.allclose(got.float(), want.float(), atol=0.02 * want.abs().max().item())


@pytest.mark.parametrize("mask", [None, torch.ones(6, 6, dtype=torch.bool).tril()], ids=["no mask", "mask"])
def test_grouped_heads_are_the_same_where_no_kernel_takes_them(mask: torch.Tensor | None, monkeypatch):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 6, 8, requires_grad=True) for heads in (4, 2, 2))
    found = []
    for serves in (True, False):
        monkeypatch.setattr(attention, "_serves_groups", lambda *_, serves=serves: serves)
        y = attend(q, k, v, mask)
        found.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v))])
    for got, want in zip(*found, strict=True):
        assert torch.allclose(got, want, atol=1e-5)


def test_a_second_derivative_is_refused_rather_than_wrong():
    q, k, v = (torch.randn(1, 2, 6, 4, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    (slope,) = torch.autograd.grad(attend(q, k, v).float().square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.float().sum().backward()


def test_dropout_drops_probabilities_and_keeps_their_mean():
    torch.manual_seed(0)
    q, k = (torch.zeros(1, 1, 200, 4, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    v = torch.ones(1, 1, 200, 4, dtype=torch.bfloat16)
    y = attend(q, k, v, dropout=0.25)[0, 0, :, 0].float()
    assert y[0].item() in (0.0, pytest.approx(1 / 0.75, rel=1e-2))
    assert y[100:].mean().item() == pytest.approx(1.0, abs=0.05)
    assert y[100:].std() > 0.01


def test_evaluation_and_caches_take_the_fused_kernel():
    q, k, v = (torch.randn(1, 2, 6, 4, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    assert "BlockedAttention" in type(attend(q, k, v).grad_fn).__name__
    assert "ScaledDotProduct" in type(attend(q[:, :, -3:], k, v).grad_fn).__name__
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    with torch.no_grad():
        assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True))
        assert torch.allclose(attend(q, k, v).float(), attend(q, k, v, mask).float(), atol=2e-2)
