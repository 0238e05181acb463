"""The switches of a shape: right in training, cached generation, packed rows and bf16; off, they change nothing."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.config.schema import ModelShape
from utils.inference.generate import generate_ids
from utils.inference.kv_cache import KVCache
from utils.models.layers import RMSNorm, SigmoidGelu, relu2, usual_width
from utils.models.llama import rotary_angles, rotate
from utils.models.registry import build_model
from utils.models.summary import summarize
from utils.training.precision import WorkingCopy

V = 50
SHAPE = ModelShape(n_layer=3, n_head=4, n_embd=32, block_size=16, vocab_size=V)
SWITCHES = [{"activation": "gelu"}, {"activation": "swiglu"}, {"activation": "relu2"}, {"qk_norm": True},
            {"value_residual": True}, {"zero_init": True},
            {"activation": "relu2", "qk_norm": True, "value_residual": True, "zero_init": True}]  # fmt: skip
EACH_KIND = pytest.mark.parametrize("kind", ["gpt", "llama"])
EACH_SWITCH = pytest.mark.parametrize("change", SWITCHES, ids=str)
GROUPED = {"n_kv_head": 2}


def build(kind: str, change: dict, lively: bool = True) -> nn.Module:
    """A model of one seed; if `lively`, every weight is far from where it began, so that every part shows."""
    torch.manual_seed(0)
    model = build_model(kind, SHAPE.model_copy(update=change | (GROUPED if kind == "llama" else {})))
    if lively:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.2)
    return model


def ids(batch: int = 2, length: int = 16) -> Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(1))


@EACH_KIND
@EACH_SWITCH
def test_a_switch_changes_the_model_and_every_weight_learns(kind: str, change: dict) -> None:
    usual = {"gpt": "gelu", "llama": "swiglu"}[kind]
    model, plain = build(kind, change, lively=False), build(kind, {}, lively=False)
    same = change == {"activation": usual}
    assert torch.equal(model(ids()), plain(ids())) == same
    model = build(kind, change)
    F.cross_entropy(model(ids()).flatten(0, 1), ids().flatten()).backward()
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 1e-7, name


@EACH_KIND
@EACH_SWITCH
def test_cached_generation_equals_uncached(kind: str, change: dict) -> None:
    model = build(kind, change).eval()
    cache = KVCache.for_model(model, batch=2)
    with torch.no_grad():
        pieces = [model(part, cache) for part in ids().split((5, 1, 1, 9), dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids()), rtol=0, atol=2e-5)
    fast, slow = (list(generate_ids(model, [1, 2, 3], 24, seed=5, use_cache=cached)) for cached in (True, False))
    assert fast == slow
    assert len(set(fast)) > 3


@EACH_KIND
@EACH_SWITCH
@pytest.mark.parametrize("training", [True, False])
def test_packed_documents_are_scored_as_if_alone(kind: str, change: dict, training: bool) -> None:
    model = build(kind, change).double().train(training)
    documents = torch.tensor([[1] * 5 + [2] * 7 + [3] * 4])
    with torch.set_grad_enabled(training):
        alone = [model(part) for part in ids(1).split((5, 7, 4), dim=1)]
        torch.testing.assert_close(model(ids(1), documents=documents), torch.cat(alone, dim=1))


@EACH_KIND
@EACH_SWITCH
def test_bf16_computes_and_learns_nearly_the_same(kind: str, change: dict) -> None:
    model = build(kind, change, lively=False)
    with torch.no_grad():  # past the start, at which zero_init hides most of the gradient
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    copy = WorkingCopy(model)
    targets = ids(2, 16).roll(1).flatten()
    losses, grads = [], []
    for computing in (model, copy.model):
        loss = F.cross_entropy(computing(ids()).float().flatten(0, 1), targets)
        loss.backward()
        if computing is copy.model:  # what is shared with the model got its gradient there
            copy.collect()
        losses.append(loss.item())
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.zero_grad()
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    for name, exact in grads[0].items():
        difference = (grads[1][name] - exact).norm() / exact.norm()
        # A share's gradient is a sum of many that nearly cancel, in 8 bits each.
        assert difference < (0.3 if name.endswith("share") else 0.05), name


def weights_as_drawn(kind: str, shape: ModelShape) -> list[Tensor]:
    """The matrices of a model without switches, drawn from seed 0 as its builder has always drawn them."""
    torch.manual_seed(0)
    bias, C = kind == "gpt", shape.n_embd
    hidden = 4 * C if bias else 32 * math.ceil(8 * C / 3 / 32)
    kv = shape.n_kv_head or shape.n_head
    block = [(C + 2 * kv * C // shape.n_head, C), (C, C), *([] if bias else [(hidden, C)]), (hidden, C), (C, hidden)]
    tables = [(V, C), (shape.block_size, C)] if bias else [(V, C)]
    for table in tables:  # every layer draws once as torch makes it, and once more as the model starts it
        nn.Embedding(*table)
    for rows, columns in block * shape.n_layer:
        nn.Linear(columns, rows, bias=bias)
    nn.Linear(C, V, bias=False)
    std = 0.02 if bias else math.sqrt(2 / (5 * C))
    small = std / math.sqrt(2 * shape.n_layer)
    stds = [std] * len(tables) + [std, small, *([] if bias else [std]), std, small] * shape.n_layer
    return [
        torch.empty(size).normal_(std=each) for size, each in zip(tables + block * shape.n_layer, stds, strict=True)
    ]


@EACH_KIND
def test_without_switches_the_weights_are_what_they_always_were(kind: str) -> None:
    torch.manual_seed(0)
    model = build_model(kind, SHAPE)
    found = [p for p in model.parameters() if p.dim() == 2]
    expected = weights_as_drawn(kind, SHAPE)
    assert [p.shape for p in found] == [p.shape for p in expected]
    assert all(map(torch.equal, found, expected))
    assert not any("qk_norm" in name or "mixer" in name for name in model.state_dict())


@EACH_KIND
def test_switches_leave_the_other_weights_as_they_are(kind: str) -> None:
    plain = build(kind, {}, lively=False).state_dict()
    for change in ({"qk_norm": True}, {"value_residual": True}, {"zero_init": True}):
        changed = build(kind, change, lively=False).state_dict()
        for name, weight in plain.items():
            to_residual = "zero_init" in change and name.endswith(("attention.out.weight", "mlp.down.weight"))
            assert torch.equal(changed[name], torch.zeros_like(weight) if to_residual else weight), name
        assert len(changed) - len(plain) == {"qk_norm": 6, "value_residual": 2, "zero_init": 0}[next(iter(change))]


@EACH_KIND
def test_zero_init_begins_as_a_model_without_blocks(kind: str) -> None:
    model = build(kind, {"zero_init": True}, lively=False)
    x = model.token_embedding(ids())
    x = x + model.position_embedding.weight[:16] if kind == "gpt" else x
    torch.testing.assert_close(model(ids()), model.head(model.norm(x)), rtol=0, atol=1e-6)
    model(ids()).square().sum().backward()
    assert model.blocks[0].attention.out.weight.grad.abs().max() > 0  # and yet it can leave zero
    assert model.blocks[0].mlp.down.weight.grad.abs().max() > 0


def test_every_activation_costs_about_the_same() -> None:
    assert [usual_width(384, name) for name in ("gelu", "relu2", "swiglu")] == [1536, 1536, 1024]
    for kind in ("gpt", "llama"):
        shape = SHAPE.model_copy(update={"n_embd": 384})
        sizes = [summarize(build_model(kind, shape.model_copy(update={"activation": name}))).parameters
                 for name in ("gelu", "relu2", "swiglu")]  # fmt: skip
        assert max(sizes) - min(sizes) < 0.001 * min(sizes)
    assert build_model("llama", SHAPE.model_copy(update={"activation": "relu2"})).blocks[0].mlp.up.bias is None


@EACH_KIND
def test_values_are_mixed_with_the_first_layer_s(kind: str) -> None:
    model = build(kind, {"value_residual": True}).eval()
    assert model.blocks[0].attention.mixer.share is None

    def values(share: float) -> Tensor:
        """The values of the second layer, (B, K, T, D), at this share; those of the first are in [0]."""
        cache = KVCache.for_model(model, batch=2)
        with torch.no_grad():
            model.blocks[1].attention.mixer.share.fill_(share)
            model(ids(), cache)
        return cache.values[:2]

    none, all_, part = values(0.0), values(1.0), values(0.3)
    torch.testing.assert_close(none[1], none[0])
    torch.testing.assert_close(part[1], 0.3 * all_[1] + 0.7 * all_[0])
    assert (all_[1] - all_[0]).abs().max() > 0.1
    assert build(kind, {"value_residual": True}, lively=False).blocks[2].attention.mixer.share.item() == 0.5


@EACH_KIND
def test_normed_queries_and_keys_do_not_grow_with_the_weights(kind: str) -> None:
    model = build(kind, {"qk_norm": True}).eval()
    cache = KVCache.for_model(model, batch=2)
    with torch.no_grad():
        model.blocks[0].attention.qk_norm.k_norm.weight.fill_(1.0)
        model(ids(), cache)
        before = cache.keys[0].clone()
        rows = slice(32, 32 + 8 * before.shape[1])  # of the keys; those of the 32 channels of queries come first
        model.blocks[0].attention.qkv.weight[rows] *= 100
        cache.reset()
        model(ids(), cache)
    torch.testing.assert_close(before.norm(dim=-1), torch.full(before.shape[:3], math.sqrt(8)), rtol=0.02, atol=0)
    if kind == "llama":  # without biases a hundred times the keys are the same keys
        torch.testing.assert_close(cache.keys[0], before, rtol=0, atol=0.02)


def test_squared_relu_and_its_gradient() -> None:
    x = torch.tensor([-2.0, -0.0, 0.5, 3.0], requires_grad=True)
    y = relu2(x)
    y.backward(torch.tensor([1.0, 1.0, 1.0, 2.0]))
    assert y.tolist() == [0.0, 0.0, 0.25, 9.0]
    assert x.grad.tolist() == [0.0, 0.0, 1.0, 12.0]
    assert torch.equal(relu2(x.detach()), y)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        here = torch.randn(64, 40).to(dtype).requires_grad_()
        there = here.detach().clone().requires_grad_()
        (relu2(here) * here.detach()).sum().backward()
        (F.relu(there).square() * there.detach()).sum().backward()
        assert torch.equal(here.grad, there.grad), dtype
    assert torch.autograd.gradcheck(relu2, torch.randn(5, 7, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.bfloat16, 0.5 * 2**-7)])
def test_gelu_by_a_sigmoid_is_torch_s_and_so_is_its_gradient(dtype: torch.dtype, near: float) -> None:
    x = torch.linspace(-30, 30, 6001).to(dtype)
    grad = torch.linspace(-3, 3, 6001).to(dtype)
    found = []
    for own in (True, False):
        here = (x if own else x.double()).clone().requires_grad_()
        y = SigmoidGelu.apply(here) if own else F.gelu(here, approximate="tanh")
        y.backward(grad.to(y.dtype))
        assert here.grad is not None
        found.append((y.detach().double(), here.grad.double()))
    for fast, exact in zip(*found, strict=True):
        assert ((fast - exact).abs() <= near * exact.abs() + 1e-7).all()  # half a step of its format, and no more


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_rms_norm_in_training_is_torch_s(dtype: torch.dtype, near: float) -> None:
    torch.manual_seed(0)
    ours, theirs = RMSNorm(48, eps=1e-5).to(dtype), nn.RMSNorm(48, eps=1e-5).to(dtype)
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2)
        theirs.weight.copy_(ours.weight)
    x, upstream = (torch.randn(4, 9, 48).to(dtype) * 3 for _ in range(2))
    results = []
    for norm in (ours, theirs):
        given = x.clone().requires_grad_()
        y = norm(given)
        y.backward(upstream)
        results.append((y.detach(), given.grad, norm.weight.grad))
    for mine, their in zip(*results, strict=True):
        assert (mine - their).norm() <= near * their.norm()
    assert torch.equal(ours(x).detach(), theirs(x).detach())  # without a gradient it is torch's own
    wide = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(RMSNorm(8, eps=1e-5).double(), wide)


def test_turning_is_the_plain_formula_there_and_back() -> None:
    cos, sin = rotary_angles(8, 6)  # the sines of the first half are negated
    x = torch.randn(2, 6, 3, 8, requires_grad=True)
    upstream = torch.randn(2, 6, 3, 8)
    x1, x2 = x.chunk(2, dim=-1)
    c, s = cos[..., :4], sin[..., 4:]
    plain = torch.cat((x1 * c - x2 * s, x2 * c + x1 * s), dim=-1)
    (expected,) = torch.autograd.grad(plain, x, upstream)
    turned = rotate(x, (cos, sin))
    (found,) = torch.autograd.grad(turned, x, upstream)
    torch.testing.assert_close(turned, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(rotate(x.detach(), (cos, sin)), turned.detach(), rtol=0, atol=0)
