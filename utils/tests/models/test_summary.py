"""The summary's numbers can be counted by hand."""

import json

import pytest
import torch
from torch import nn

from utils.config.schema import ModelShape
from utils.models.registry import build_model
from utils.models.summary import summarize

SHAPE = ModelShape(n_layer=3, n_head=2, n_embd=16, block_size=8, vocab_size=20)
BLOCK = 2 * 16 + 4 * 16 * 16 + 3 * 16 * 64  # two norms, attention, SwiGLU: 8/3 * 16 rounds up to 64


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_llama_by_hand(device: str) -> None:
    with torch.device(device):
        summary = summarize(build_model("llama", SHAPE))
    total = 20 * 16 + 3 * BLOCK + 16
    assert [(p.name, p.kind, p.parameters, p.tied_to) for p in summary.parts] == [
        ("token_embedding", "Embedding", 20 * 16, ""),
        ("blocks", "3 x Block", 3 * BLOCK, ""),
        ("norm", "RMSNorm", 16, ""),
        ("head", "Linear", 0, "token_embedding"),
    ]
    assert summary.parameters == summary.trainable == total
    assert summary.weights_mb == pytest.approx(total * 4 / 1e6)
    assert summary.training_mb == pytest.approx(total * 16 / 1e6)
    assert summary.flops_per_token == 6 * total + 12 * 3 * 8 * 16


def test_an_untied_table_is_looked_up_and_not_multiplied() -> None:
    tied = summarize(build_model("llama", SHAPE))
    untied = summarize(build_model("llama", SHAPE.model_copy(update={"tie_embeddings": False})))
    assert untied.parameters - tied.parameters == 20 * 16
    assert untied.flops_per_token == tied.flops_per_token


def test_any_module_and_frozen_parts() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model.scale = nn.Parameter(torch.ones(1))
    summary = summarize(model, name="<tiny>")
    assert summary.parts[0].name == "(own)"
    assert (summary.parameters, summary.trainable) == (1 + 16 + 10, 11)
    assert summary.flops_per_token == 6 * 27
    assert summary.training_mb == pytest.approx((27 * 4 + 11 * 12) / 1e6)
    assert str(summary).startswith("<tiny>\n")
    assert "&lt;tiny&gt;" in summary._repr_html_()
    assert summarize(nn.Linear(2, 2)).parameters == 6
    assert summarize(nn.Identity()).parameters == 0


def test_it_prints_an_aligned_table_and_becomes_json() -> None:
    summary = summarize(build_model("gpt", SHAPE))
    lines = str(summary).splitlines()
    assert len({len(line) for line in lines[2:]}) == 1
    assert "tied to token_embedding" in str(summary)
    assert json.loads(json.dumps(summary.to_dict()))["parameters"] == summary.parameters


def test_a_bdh_counts_its_shared_weights_once_per_layer():
    shape = ModelShape(n_layer=3, n_head=2, n_embd=16, n_hidden=64, vocab_size=50, block_size=32)
    model = build_model("bdh", shape)
    found = summarize(model)
    assert found.parameters == 2 * 50 * 16 + 3 * 16 * 64
    assert found.flops_per_token == 6 * (3 * 5 * 16 * 64 + 16 * 50)
    one_layer = summarize(build_model("bdh", shape.model_copy(update={"n_layer": 1})))
    assert one_layer.parameters == found.parameters
    assert one_layer.flops_per_token < found.flops_per_token
