"""A model that reads a text in pieces through the cache says what it says of the whole text."""

import pytest
import torch
from torch import nn

from utils.config.schema import ModelShape
from utils.inference.kv_cache import KVCache, make_cache
from utils.models.bdh_state import BDHState
from utils.models.registry import build_model

SHAPE = ModelShape(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=50)
CASES = [("gpt", SHAPE), ("llama", SHAPE), ("llama", SHAPE.model_copy(update={"n_kv_head": 2}))]


@pytest.mark.parametrize(("kind", "shape"), CASES)
@pytest.mark.parametrize("chunks", [(10,), (4,) + (1,) * 6, (3, 5, 2)])
def test_pieces_equal_the_whole(kind: str, shape: ModelShape, chunks: tuple[int, ...]) -> None:
    model = build_model(kind, shape).eval()
    ids = torch.randint(50, (3, 10))
    cache = KVCache.for_model(model, batch=3)
    with torch.no_grad():
        whole = model(ids)
        for _ in range(2):  # a cache that was reset is as good as new
            pieces = [model(part, cache) for part in ids.split(chunks, dim=1)]
            torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-5)
            assert cache.length == 10
            cache.reset()


def test_for_model_reads_shape_and_dtype() -> None:
    model = build_model("llama", SHAPE.model_copy(update={"n_kv_head": 2})).to(torch.bfloat16)
    wrapped = nn.Sequential()
    wrapped.add_module("module", model)
    for cache in (KVCache.for_model(model, batch=2), KVCache.for_model(wrapped, batch=2)):
        assert cache.keys.shape == cache.values.shape == (2, 2, 2, 16, 8)
        assert cache.keys.dtype == torch.bfloat16
        assert (cache.length, cache.capacity) == (0, 16)


def test_each_model_gets_its_kind_of_cache() -> None:
    wrapped = nn.Sequential()
    wrapped.add_module("module", build_model("bdh", SHAPE))
    assert isinstance(make_cache(wrapped, batch=2), BDHState)
    assert make_cache(wrapped, batch=2).sums[1].shape == (4, 2, 1024, 32)
    assert isinstance(make_cache(build_model("gpt", SHAPE)), KVCache)
    stranger = nn.Linear(2, 2)
    stranger.shape = (2, 2)
    assert make_cache(stranger) is None


def test_a_full_cache_says_so() -> None:
    cache = KVCache(n_layer=1, batch=1, n_kv_head=1, capacity=4, head_dim=2)
    k = torch.ones(1, 1, 3, 2)
    cache.update(0, k, k)
    cache.advance(3)
    with pytest.raises(ValueError, match="6 tokens are more than this cache holds: its capacity is 4"):
        cache.update(0, k, k)
