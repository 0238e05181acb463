"""What decays and what does not."""

import torch

from utils.config.schema import ModelShape, TrainConfig
from utils.models.registry import build_model
from utils.training.optim import build_optimizer, parameter_groups


def test_matrices_decay_and_vectors_do_not():
    model = build_model("gpt", ModelShape(n_layer=1, n_head=2, n_embd=8, vocab_size=11, block_size=4))
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


def test_settings_arrive_at_adamw():
    optimizer = build_optimizer(torch.nn.Linear(2, 2), TrainConfig(beta1=0.8, beta2=0.7, weight_decay=0.3))
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.7)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
