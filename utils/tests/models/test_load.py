"""The front door: weights are a pure function of the seed, and the vocabulary must fit."""

import pytest
import torch

from utils.config.schema import ModelConfig, ModelShape
from utils.models.load import load_model, resolve_shape
from utils.training.loss import token_loss

CONFIG = ModelConfig(shape=ModelShape(n_layer=1, n_head=2, n_embd=16, block_size=8))


def test_same_seed_same_weights_and_another_seed_others() -> None:
    first, second, third = (load_model(CONFIG, 20, seed) for seed in (3, 3, 4))
    torch.rand(5)
    for name, p in first.named_parameters():
        assert torch.equal(p, second.get_parameter(name))
    assert not torch.equal(first.head.weight, third.head.weight)


def test_the_global_random_state_neither_matters_nor_changes() -> None:
    torch.manual_seed(1)
    first = load_model(CONFIG, 20)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(load_model(CONFIG, 20).head.weight, first.head.weight)


def test_vocabulary_comes_from_the_tokenizer_unless_set() -> None:
    assert resolve_shape(CONFIG, 20).shape.vocab_size == 20
    assert load_model(CONFIG, 20).shape.vocab_size == 20
    padded = CONFIG.model_copy(update={"shape": CONFIG.shape.model_copy(update={"vocab_size": 64})})
    assert resolve_shape(padded, 20) == padded
    assert load_model(padded, 20)(torch.zeros(1, 2, dtype=torch.int64)).shape == (1, 2, 64)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused() -> None:
    small = CONFIG.model_copy(update={"shape": CONFIG.shape.model_copy(update={"vocab_size": 10})})
    with pytest.raises(ValueError, match=r"vocab_size=10 is smaller than the tokenizer's vocabulary of 20"):
        load_model(small, 20)


def padded(to: int, rows: int = 0) -> ModelConfig:
    return CONFIG.model_copy(update={"shape": CONFIG.shape.model_copy(update={"pad_vocab_to": to, "vocab_size": rows})})


@pytest.mark.parametrize(("vocab_size", "rows"), [(1, 64), (63, 64), (64, 64), (65, 128), (1000, 1024)])
def test_rows_are_rounded_up_only_where_the_tokenizer_decides(vocab_size: int, rows: int) -> None:
    assert resolve_shape(padded(64), vocab_size).shape.vocab_size == rows
    assert resolve_shape(padded(1), vocab_size).shape.vocab_size == vocab_size
    assert resolve_shape(padded(64, 1001), vocab_size).shape.vocab_size == 1001
    resolved = resolve_shape(padded(64), vocab_size)
    assert resolve_shape(resolved, vocab_size) == resolved
    with pytest.raises(ValueError, match=rf"vocab_size=10 is smaller than the tokenizer's vocabulary of {10 + rows}"):
        resolve_shape(padded(64, 10), 10 + rows)


def test_rows_that_no_token_has_learn_to_stay_out_of_the_way() -> None:
    model = load_model(padded(64), 20)
    assert model.head.weight.shape[0] == 64
    ids = torch.arange(20).repeat(4).view(10, 8)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        loss, _ = token_loss(model(ids[:, :-1]), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shares = model(ids[:, :-1]).softmax(-1)
    assert loss.item() / ids[:, 1:].numel() < 1.0  # log(64) = 4.2 before
    assert shares[..., 20:].sum(-1).max() < 0.05
