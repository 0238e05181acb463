"""What a token costs: the paper's formula for our models, and what torch counts for others."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders.shapes import SHAPES
from utils.config.schema import ModelShape
from utils.data.batching.tasks import Batch
from utils.models.registry import build_model
from utils.training.flops import flops_per_token


def counted(model: nn.Module, ids: torch.Tensor) -> float:
    """What torch counts for a real forward and backward pass, per token."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        model(ids).sum().backward()
    return counter.get_total_flops() / ids.numel()


@pytest.mark.parametrize("name", SHAPES)
def test_a_gpt_costs_what_the_benchmark_says(name: str):
    s = SHAPES[name]
    with torch.device("meta"):
        model = build_model("gpt", ModelShape(n_layer=s.n_layer, n_head=s.n_head, n_embd=s.n_embd,
                                              block_size=s.block_size, vocab_size=s.vocab_size))  # fmt: skip
    assert flops_per_token(model, s.block_size) == s.flops_per_token


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kind", "heads"), [("gpt", 0), ("llama", 0), ("llama", 2)])
def test_the_formula_is_what_torch_counts(kind: str, heads: int, tied: bool):
    shape = ModelShape(n_layer=2, n_head=4, n_kv_head=heads, n_embd=64, block_size=64, vocab_size=300,
                       tie_embeddings=tied)  # fmt: skip
    model, ids = build_model(kind, shape), torch.randint(0, 300, (2, 64))
    # The formula also counts norms and biases, which are no products.
    assert flops_per_token(model, 64) == pytest.approx(counted(model, ids), rel=0.02)


def test_a_bdh_knows_its_own_cost():
    model = build_model("bdh", ModelShape(n_layer=2, n_head=2, n_embd=16, n_hidden=64, vocab_size=50))
    assert flops_per_token(model, 64) == model.flops_per_token()


class Elsewhere(nn.Module):
    """A model that says nothing of its shape, drops at random and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 100)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        q, k, v = self.qkv(self.table(ids))[:, None].chunk(3, dim=-1)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
        return self.out(self.drop(y))


def example(tokens: int = 40) -> Batch:
    ids = torch.from_numpy(np.arange(tokens)[None] % 100)
    return Batch((ids,), ids, {})


def test_other_models_are_counted():
    model = Elsewhere()
    assert flops_per_token(model, 40, example()) == pytest.approx(counted(model, example().inputs[0]), rel=0.02)


class Encoder(nn.Sequential):
    """One of torch's own layers, which it does as a single operation where nobody wants a gradient."""

    def __init__(self) -> None:
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        super().__init__(nn.Embedding(100, 32), layer, nn.Linear(32, 100))


def test_layers_that_torch_would_hide_are_counted():
    model, enabled = Encoder(), torch.backends.mha.get_fastpath_enabled()
    assert flops_per_token(model, 40, example()) == pytest.approx(counted(model, example().inputs[0]), rel=0.02)
    assert torch.backends.mha.get_fastpath_enabled() == enabled


def test_counting_leaves_nothing_behind():
    model = Elsewhere().train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    flops_per_token(model, 40, example())
    assert torch.equal(torch.rand(2), expected)
    assert model.calls == 0
    assert model.training
    assert all(p.grad is None for p in model.parameters())


class Refuses(Elsewhere):
    """One that cannot be run this way."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not like this")


@pytest.mark.parametrize(("model", "batch"), [(Elsewhere(), None), (Refuses(), example())])
def test_what_cannot_be_counted_is_six_times_its_weights(model, batch):
    weights = 32 * 96 + 96 + 32 * 100 + 100  # the table is only looked up in
    assert flops_per_token(model, 40, batch) == 6 * weights
    assert model.training
