"""The front door: weights are a pure function of the seed, and the vocabulary must fit."""

import pytest
import torch

from utils.config.schema import ModelConfig, ModelShape
from utils.models.load import load_model, resolve_shape

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
