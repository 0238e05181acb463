"""Compiling changes how fast a run is, and nothing else; where it fails, training goes on without."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor import config

from utils.config.schema import ModelShape
from utils.models.registry import build_model
from utils.training.compiled import Compiled, is_worth_it
from utils.training.precision import WorkingCopy


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))


def test_what_is_compiled_computes_the_same():
    torch.manual_seed(0)
    layer, words, x = nn.Sequential(nn.Linear(7, 5), nn.GELU(), nn.Linear(5, 3)), [], torch.randn(2, 7)
    fast, found = Compiled(layer.forward, words.append), []
    for forward in (layer, fast):
        found.append([forward(x), *torch.autograd.grad(forward(x).square().sum(), list(layer.parameters()))])
    assert words == []
    for plain, compiled in zip(*found, strict=True):
        assert torch.allclose(plain, compiled, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "precision"), [("gpt", "bf16"), ("gpt", "fp32"), ("llama", "bf16")])
def test_a_compiled_step_has_the_same_gradients(kind: str, precision: str):
    torch.manual_seed(0)
    model = build_model(kind, ModelShape(n_layer=1, n_head=2, n_embd=32, block_size=16, vocab_size=50))
    ids, weight = torch.randint(50, (3, 16)), torch.randn(3, 16, 32)
    each, exact = (WorkingCopy(model).model, 2e-2) if precision == "bf16" else (model, 1e-5)
    words: list[str] = []
    gradients = []
    for forward in (each.hidden, Compiled(each.hidden, words.append)):
        each.zero_grad()
        (forward(ids).float() * weight).sum().backward()
        gradients.append([p.grad.clone() for p in each.parameters() if p.grad is not None])
    assert words == []
    for plain, fast in zip(*gradients, strict=True):  # fused kernels round in other places
        assert torch.allclose(plain.float(), fast.float(), rtol=exact, atol=exact * float(plain.abs().max()))


@pytest.mark.parametrize("says", ["", "cc1plus: virtual memory exhausted: Cannot allocate memory"])
def test_where_the_compiler_fails_it_says_so_once_and_goes_on(tmp_path: Path, monkeypatch, says: str):
    compiler = tmp_path / "g++"
    if says:
        compiler.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1\n")
        compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    torch._dynamo.reset()
    layer, words = nn.Sequential(nn.Linear(7, 5), nn.GELU(), nn.Linear(5, 3)), []
    fast, x = Compiled(layer.forward, words.append), torch.randn(2, 7)
    with config.patch({"cpp.cxx": (None, str(compiler))}):
        for _ in range(2):
            assert torch.equal(fast(x), layer(x))
    assert len(words) == 1
    assert words[0].startswith("the model could not be compiled (")


def test_a_mistake_in_the_model_is_its_own_and_no_one_else_s():
    layer, words = nn.Linear(4, 2), []
    fast = Compiled(layer.forward, words.append)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fast(torch.randn(2, 5))
    assert words == []


def test_only_a_long_run_is_worth_a_minute():
    day, minute = 86_400.0, 60.0
    assert is_worth_it(day, torch.device("cpu"))
    assert not is_worth_it(minute, torch.device("cpu"))
    assert not is_worth_it(day, torch.device("mps"))
