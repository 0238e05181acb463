"""What must hold for every built-in model: causality, limits, initial weights, tying, the cache protocol."""

import pytest
import torch
from torch import Tensor

from utils.config.schema import ModelShape
from utils.models.registry import build_model

SHAPE = ModelShape(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=50)
CASES = [("gpt", SHAPE), ("llama", SHAPE), ("llama", SHAPE.model_copy(update={"n_kv_head": 2}))]
EACH_KIND = pytest.mark.parametrize("kind", ["gpt", "llama"])
EACH_CASE = pytest.mark.parametrize(("kind", "shape"), CASES)


class GrowingCache:
    """The cache protocol in its simplest form: concatenate."""

    def __init__(self) -> None:
        self.length = 0
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.stored:
            k, v = (torch.cat((old, new), dim=2) for old, new in zip(self.stored[layer], (k, v), strict=True))
        self.stored[layer] = k, v
        return k, v

    def advance(self, n_tokens: int) -> None:
        self.length += n_tokens


@EACH_CASE
def test_a_later_token_does_not_change_earlier_logits(kind: str, shape: ModelShape) -> None:
    model = build_model(kind, shape).eval()
    ids = torch.randint(shape.vocab_size, (2, 16))
    changed = ids.clone()
    changed[:, 9] = (changed[:, 9] + 1) % shape.vocab_size
    with torch.no_grad():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=1e-6)
    assert (before[:, 9:] - after[:, 9:]).abs().amax(dim=-1).min() > 1e-4  # and every later one does change


@EACH_CASE
@pytest.mark.parametrize("chunks", [(3, 5, 2), (4, 1, 1, 4)])
def test_text_in_chunks_equals_the_whole(kind: str, shape: ModelShape, chunks: tuple[int, ...]) -> None:
    model = build_model(kind, shape).eval()
    ids = torch.randint(shape.vocab_size, (2, 10))
    cache = GrowingCache()
    with torch.no_grad():
        pieces = [model(part, cache) for part in ids.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=0, atol=1e-5)
    assert cache.length == 10


@EACH_KIND
def test_a_text_longer_than_block_size_is_refused_with_both_numbers(kind: str) -> None:
    model = build_model(kind, SHAPE)
    with pytest.raises(ValueError, match=r"17 tokens .* block_size of 16"):
        model(torch.zeros(1, 17, dtype=torch.int64))
    cache = GrowingCache()
    model(torch.zeros(1, 12, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match=r"17 tokens .* block_size of 16"):
        model(torch.zeros(1, 5, dtype=torch.int64), cache)


@EACH_KIND
def test_initial_weights(kind: str) -> None:
    torch.manual_seed(0)
    model = build_model(kind, ModelShape(n_layer=8, n_embd=128, vocab_size=200))
    std = {"gpt": 0.02, "llama": 0.0559}[kind]  # llama: sqrt(2 / (5 * 128))
    for name, p in model.named_parameters():
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            assert p.std().item() == pytest.approx(std / 4, rel=0.05), name  # sqrt(2 * 8 layers) = 4
        elif p.dim() == 2:
            assert p.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(p.mean().item()) < std / 20, name
        else:
            assert torch.all(p == (0 if name.endswith("bias") else 1)), name


@EACH_KIND
def test_tied_embeddings_share_memory_and_untied_do_not(kind: str) -> None:
    tied = build_model(kind, SHAPE)
    untied = build_model(kind, SHAPE.model_copy(update={"tie_embeddings": False}))
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.head.weight.data_ptr() != untied.token_embedding.weight.data_ptr()
    saved = 50 * 32
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == saved


@EACH_KIND
def test_dropout_acts_in_training_only(kind: str) -> None:
    model = build_model(kind, SHAPE.model_copy(update={"dropout": 0.3}))
    ids = torch.randint(50, (2, 16))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


@EACH_CASE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_near_full_precision(kind: str, shape: ModelShape, dtype: torch.dtype) -> None:
    model = build_model(kind, shape).eval()
    ids = torch.randint(50, (2, 16))
    with torch.no_grad():
        exact = model(ids)
        with torch.autocast("cpu", dtype=dtype):
            torch.testing.assert_close(model(ids).float(), exact, rtol=0.05, atol=0.02)
        half = model.to(dtype)(ids)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.02)


def test_feed_forward_widths() -> None:
    def width(kind: str, **change: int) -> int:
        return build_model(kind, SHAPE.model_copy(update=change)).blocks[0].mlp.up.out_features

    assert width("gpt") == 4 * 32
    assert width("llama") == 96  # 8/3 * 32 = 85.3, and the next multiple of 32
    assert width("llama", n_embd=96) == 256
    assert width("gpt", n_hidden=40) == width("llama", n_hidden=40) == 40


def test_no_rotation_table_is_saved() -> None:
    assert not {"cos", "sin"} & set(build_model("llama", SHAPE).state_dict())


def test_unknown_kind_and_unknown_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.kind=mamba is not known: choose one of bdh, gpt, llama"):
        build_model("mamba", SHAPE)
    with pytest.raises(ValueError, match=r"model\.shape\.vocab_size=0"):
        build_model("gpt", ModelShape())
