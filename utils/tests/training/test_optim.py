"""What decays, what Muon takes, and that a run with it resumes exactly."""

import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.config.schema import ModelShape, TrainConfig
from utils.models.adapter import load_export
from utils.models.registry import build_model
from utils.runs.folder import RunFolder
from utils.tests.tiny import metrics_of, tiny_config, weights_hash
from utils.training.muon import Muon
from utils.training.optim import block_matrices, build_optimizer, parameter_groups
from utils.training.run import run_training

MUON = TrainConfig(optimizer="muon", learning_rate=0.01, muon_momentum=0.9)
EXPORTS = Path(__file__).parents[3] / "tests" / "exports"


def gpt(**changes) -> nn.Module:
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 11, "block_size": 4, **changes}
    return build_model("gpt", ModelShape(**shape))


def names_of(model: nn.Module, params) -> set[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p] for p in params}


def test_matrices_decay_and_vectors_do_not():
    model = gpt()
    decay, plain = parameter_groups(model, 0.1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert decay["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert all(names[p].endswith("weight") and "norm" not in names[p] for p in decay["params"])
    assert all("norm" in names[p] or names[p].endswith("bias") for p in plain["params"])
    assert len(decay["params"]) + len(plain["params"]) == len(names)


def test_frozen_parameters_are_left_out():
    model = torch.nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(model, 0.1)] == [0, 1]
    model = gpt()
    model.blocks[0].mlp.up.weight.requires_grad_(False)
    optimizer = build_optimizer(model, MUON)
    given = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(given) == len(list(model.parameters())) - 1
    assert all(p.requires_grad for p in given)


def test_settings_arrive_at_adamw():
    optimizer = build_optimizer(torch.nn.Linear(2, 2), TrainConfig(beta1=0.8, beta2=0.7, weight_decay=0.3))
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.7)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_settings_arrive_at_muon():
    optimizer = build_optimizer(gpt(), MUON.model_copy(update={"weight_decay": 0.3, "beta1": 0.8}))
    assert isinstance(optimizer, Muon)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3, 0.0]
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, MUON.beta2)}
    assert [group["orthogonal"] for group in optimizer.param_groups] == [True, False, False]


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_what_lies_between_embedding_and_head(tied: bool):
    model = gpt(tie_embeddings=tied)
    turned, rest, vectors = (names_of(model, g["params"]) for g in build_optimizer(model, MUON).param_groups)
    assert turned == {f"blocks.0.{layer}.weight" for layer in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")}
    assert rest == {"token_embedding.weight", "position_embedding.weight"} | (set() if tied else {"head.weight"})
    assert len(turned) + len(rest) + len(vectors) == len(list(model.parameters()))


def test_queries_keys_and_values_are_three_matrices():
    model = gpt()
    parts = block_matrices(model)
    assert parts[model.blocks[0].attention.qkv.weight] == (0, (8, 8, 8))
    assert parts[model.blocks[0].mlp.up.weight] is None


def test_a_module_may_say_how_its_layers_are_cut():
    class Grouped(nn.Module):
        fused = {"project": (8, 4, 4)}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 16)

    model = nn.ModuleList([nn.Sequential(Grouped())])
    assert list(block_matrices(model).values()) == [(0, (8, 4, 4))]


@pytest.mark.parametrize(
    ("name", "turned", "not_turned"),
    [
        ("decoder", ["mhsa_0.in_proj_weight", "mhsa_0.out_proj.weight", "ffn_0.linear1.weight"], ["output_projection"]),
        ("moe", ["qkv.weight", "experts.0.w1.weight"], ["head", "pos_embedding"]),
        ("alibi_dict", [], ["embedding"]),
        ("rotary", ["c_attn.weight", "down.weight"], ["lm_head", "wte"]),
        ("encoder_decoder", [], []),
        ("classifier", [], []),
    ],
)
def test_models_from_elsewhere(name: str, turned: list[str], not_turned: list[str]):
    model = load_export(EXPORTS / name)
    matrices, found = block_matrices(model), names_of(model, block_matrices(model))
    assert found
    assert all(any(known.endswith(end) for known in found) for end in turned)
    assert not any(part in known for part in not_turned for known in found)
    assert all("embed" not in known and known.endswith("weight") for known in found)
    cut = {n: matrices[p] for n, p in model.named_parameters() if matrices.get(p)}
    assert all(parts == (0, (p.shape[1],) * 3) for n, p in model.named_parameters() if (parts := cut.get(n)))
    assert bool(cut) == any(n.endswith(("in_proj_weight", "qkv.weight", "c_attn.weight")) for n in found)
    optimizer = build_optimizer(model, MUON)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert not [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert all(p.isfinite().all() for p in model.parameters())


def test_layers_of_transformers_hold_their_inputs_first():
    conv = pytest.importorskip("transformers.pytorch_utils").Conv1D
    block = nn.ModuleDict({"c_attn": conv(24, 8), "c_fc": conv(32, 8)})
    model = nn.ModuleList([block, nn.Embedding(11, 8)])
    assert block_matrices(model) == {block.c_attn.weight: (1, (8, 8, 8)), block.c_fc.weight: None}


def test_a_weight_that_is_worked_out_of_others_stays_with_adamw():
    block = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    model = nn.ModuleList([block])
    assert list(block_matrices(model)) == [block[1].weight]
    given = [len(group["params"]) for group in build_optimizer(model, MUON).param_groups]
    assert given == [1, 2, 2]  # its length (8, 1) and direction (8, 8), and two biases


@pytest.mark.parametrize("model", [nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)), nn.ModuleList()])
def test_a_model_without_such_matrices_is_refused(model: nn.Module):
    with pytest.raises(ValueError, match=r"muon finds no matrix to train in .* of (Sequential|ModuleList): use train"):
        build_optimizer(model, MUON)


def test_a_run_with_muon_learns_and_resumes_exactly(tmp_path: Path):
    overrides = ("train.optimizer=muon", "train.learning_rate=1e-2", "train.sample_every=0")
    run_training(tiny_config(tmp_path / "whole", *overrides))
    config = tiny_config(tmp_path / "cut", *overrides)
    rows = RunFolder(tmp_path / "cut").metrics
    result = run_training(config, lambda: signal.SIGINT if any(row["step"] >= 7 for row in rows()) else None)
    assert (result.status, result.progress.step) == ("interrupted", 7)
    assert run_training(config).status == "completed"
    assert weights_hash(tmp_path / "cut") == weights_hash(tmp_path / "whole")
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
    losses = [row["val/loss"] for row in metrics_of(tmp_path / "whole") if row["kind"] == "val"]
    assert losses[0] > losses[1] > losses[2]
