"""The copy in 16 bits: what of a model is copied, and what is the model's own."""

import torch
from torch import nn

from utils.training.precision import WorkingCopy


class Nested(nn.Module):
    """A model that wants a whole part of it in fp32, with modules inside; its output layer is tied to one of them."""

    full_precision = ("read",)

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.read[0].weight


def test_a_part_in_full_precision_is_shared_with_all_that_is_in_it():
    model = Nested()
    before = {name: (p, p.dtype) for name, p in model.named_parameters()}
    copy = WorkingCopy(model)
    assert {name: (p, p.dtype) for name, p in model.named_parameters()} == before
    assert copy.model.read[1].weight is model.read[1].weight
    assert copy.model.norm.weight.dtype == copy.model.head.weight.dtype == torch.bfloat16
    assert copy.model.head.weight is not copy.model.read[0].weight  # in 16 bits where it is read as a matrix
    with torch.no_grad():
        model.read[0].weight.fill_(3.0)
    copy.refresh()
    assert (copy.model.head.weight == 3.0).all()
    (copy.model.head.weight.float().sum() + copy.model.read[0].weight.sum()).backward()
    copy.collect()
    assert (model.head.weight.grad == 2.0).all()  # one from either place
    assert copy.model.head.weight.grad is None
