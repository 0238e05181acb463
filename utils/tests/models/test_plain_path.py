"""Exports take torch's own operations: no backward pass of ours is in what leaves this package."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from utils.config.schema import ModelShape
from utils.models.registry import build_model

SHAPE = ModelShape(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=50, activation="relu2", qk_norm=True,
                   value_residual=True)  # fmt: skip
GROUPED = SHAPE.model_copy(update={"n_kv_head": 2})
EACH_KIND = pytest.mark.parametrize(("kind", "shape"), [("gpt", SHAPE), ("llama", GROUPED)], ids=["gpt", "llama"])
EACH_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def build(kind: str, shape: ModelShape, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A model that could be trained, as it is right after it was built or loaded, and ids (B, T)."""
    torch.manual_seed(0)
    return build_model(kind, shape).to(dtype).eval(), torch.randint(50, (2, 16))


@EACH_KIND
@EACH_DTYPE
def test_a_trace_can_be_saved(kind: str, shape: ModelShape, dtype: torch.dtype, tmp_path: Path) -> None:
    model, ids = build(kind, shape, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have another exporter
        torch.jit.trace(model, ids, check_trace=False).save(str(tmp_path / "traced.pt"))
        loaded = torch.jit.load(str(tmp_path / "traced.pt"))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids), model(ids))


@EACH_KIND
@EACH_DTYPE
def test_an_export_has_attention_in_one_operation(kind: str, shape: ModelShape, dtype: torch.dtype) -> None:
    model, ids = build(kind, shape, dtype)
    program = torch.export.export(model, (ids,))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("scaled_dot_product_attention" in name for name in called) == shape.n_layer
    assert sum("rms_norm" in name for name in called) >= shape.n_layer
    assert not any("vector_norm" in name or "baddbmm" in name for name in called)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(ids), model(ids))


@EACH_KIND
def test_training_takes_the_passes_written_out(kind: str, shape: ModelShape) -> None:
    model, ids = build(kind, shape, torch.bfloat16)
    used, todo = set(), [model(ids).grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in used:
            used.add(node)
            todo += [each for each, _ in node.next_functions]
    names = {type(node).__name__ for node in used}
    ours = {"SquaredRelu", "ScaledToUnit", "BlockedAttention", *(["Rotate"] if kind == "llama" else [])}
    assert {name.removesuffix("Backward") for name in names} >= ours
