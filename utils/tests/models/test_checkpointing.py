"""Activations that are computed twice: the same loss and gradients bit for bit, from less memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from utils.config.schema import ModelShape
from utils.inference.generate import generate_ids
from utils.models.adapter import adapt, load_export
from utils.models.checkpointing import use_checkpointing
from utils.models.registry import build_model
from utils.tests.models.test_gpt_and_llama import GrowingCache
from utils.training.precision import WorkingCopy

V = 50
EXPORTS = Path(__file__).parents[3] / "tests" / "exports"
SHAPE = ModelShape(n_layer=4, n_head=2, n_embd=32, block_size=24, vocab_size=V, dropout=0.2)
ALL_ON = {"activation": "relu2", "qk_norm": True, "value_residual": True}
CASES = [("gpt", {}), ("gpt", ALL_ON), ("llama", {}), ("llama", ALL_ON), ("bdh", {"n_hidden": 64})]
EACH = pytest.mark.parametrize(("kind", "change"), CASES, ids=str)


def build(kind: str, change: dict) -> nn.Module:
    torch.manual_seed(0)
    return build_model(kind, SHAPE.model_copy(update=change))


def kept_bytes(model: nn.Module, ids: Tensor) -> tuple[int, Tensor]:
    """Bytes of the tensors that wait for the backward pass, weights aside, and the loss that one can begin from."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(7)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(model(ids).float().flatten(0, 1), ids.flatten())
    return sum(kept.values()), loss


def gradients(model: nn.Module, ids: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """The loss, every gradient, and what torch draws next."""
    torch.manual_seed(7)
    model.zero_grad()
    loss = F.cross_entropy(model(ids).float().flatten(0, 1), ids.flatten())
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None], torch.rand(3)


def check_equal(plain: tuple, again: tuple) -> None:
    assert torch.equal(plain[0], again[0])
    assert len(plain[1]) == len(again[1]) > 3
    assert all(map(torch.equal, plain[1], again[1]))
    assert torch.equal(plain[2], again[2])


@EACH
def test_gradients_are_the_same_bit_for_bit_with_dropout(kind: str, change: dict) -> None:
    model, ids = build(kind, change), torch.randint(V, (3, 24))
    plain = gradients(model, ids)
    use_checkpointing(model)
    check_equal(plain, gradients(model, ids))


@EACH
def test_less_is_kept_for_the_backward_pass(kind: str, change: dict) -> None:
    model, ids = build(kind, change), torch.randint(V, (8, 24))
    plain, loss = kept_bytes(model, ids)
    use_checkpointing(model)
    less, same = kept_bytes(model, ids)
    assert torch.equal(loss, same)
    assert less < 0.4 * plain
    model.eval()  # evaluation needs no second pass: it keeps what it would without
    kept, _ = kept_bytes(model, ids)
    assert kept > less


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_in_bf16_and_with_packed_documents_too(kind: str) -> None:
    ids, documents = torch.randint(V, (2, 24)), torch.tensor([[1] * 9 + [2] * 15] * 2)
    found = []
    for again in (False, True):
        model = build(kind, ALL_ON)
        if again:
            use_checkpointing(model)
        copy = WorkingCopy(model)
        torch.manual_seed(3)
        copy.model(ids, documents=documents).float().logsumexp(-1).sum().backward()
        copy.collect()
        found.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_generation_with_a_cache_is_not_disturbed(kind: str) -> None:
    model = build(kind, ALL_ON)
    plain = list(generate_ids(model, [1, 2], 12))
    use_checkpointing(model)
    assert list(generate_ids(model, [1, 2], 12)) == plain


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_a_cache_in_training_is_written_once(kind: str) -> None:
    ids, found = torch.randint(V, (2, 24)), []
    for again in (False, True):
        model = build(kind, {"dropout": 0.0})
        if again:
            use_checkpointing(model)
        cache = GrowingCache()
        torch.cat([model(part, cache) for part in ids.split((10, 14), dim=1)], dim=1).logsumexp(-1).sum().backward()
        found.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *found))


def transformers_gpt() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=24, n_embd=32, n_layer=4, n_head=2, bos_token_id=0,
                                      eos_token_id=0))  # fmt: skip


def transformers_llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
                                        num_attention_heads=2, max_position_embeddings=24))  # fmt: skip


@pytest.mark.parametrize("build_theirs", [transformers_gpt, transformers_llama])
def test_a_model_of_transformers_uses_its_own_switch(build_theirs: Callable[[], nn.Module]) -> None:
    theirs = build_theirs()
    model, ids = adapt(theirs, theirs.config.to_dict(), "causal").train(), torch.randint(V, (3, 24))
    kept, plain = kept_bytes(model, ids)[0], gradients(model, ids)
    use_checkpointing(model)
    check_equal(plain, gradients(model, ids))
    assert kept_bytes(model, ids)[0] < 0.4 * kept


def test_an_export_is_refused_in_words() -> None:
    with pytest.raises(
        ValueError, match=r"activation_checkpointing=true cannot be done for \w+: .*lower train.batch_size"
    ):
        use_checkpointing(load_export(EXPORTS / "decoder"))
