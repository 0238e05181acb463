"""Generation: the cache changes nothing, the seed decides, and the model comes back as it was."""

import gc
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from utils.config.schema import ModelShape
from utils.inference.generate import generate_ids, generate_text, stream_text, window_start
from utils.models.registry import build_model

SHAPE = ModelShape(n_layer=2, n_head=4, n_embd=32, block_size=12, vocab_size=50)
CASES = [("gpt", SHAPE), ("llama", SHAPE), ("llama", SHAPE.model_copy(update={"n_kv_head": 2}))]


class ByteTokenizer:
    """A token is a UTF-8 byte."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


def lively(kind: str = "llama", shape: ModelShape = SHAPE) -> nn.Module:
    """A model whose text varies: its weights are large and untied (a tied one parrots)."""
    torch.manual_seed(0)
    model = build_model(kind, shape.model_copy(update={"tie_embeddings": False}))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(10)
    return model


@pytest.mark.parametrize(("kind", "shape"), CASES)
@pytest.mark.parametrize("prompt_length", [1, 5, 12, 31])
def test_cached_equals_uncached(kind: str, shape: ModelShape, prompt_length: int) -> None:
    model = lively(kind, shape)
    prompt = torch.randint(50, (1, prompt_length))
    for temperature in (0.0, 1.0):
        fast = list(generate_ids(model, prompt, 3 * 12, temperature))
        slow = list(generate_ids(model, prompt, 3 * 12, temperature, use_cache=False))
        assert fast == slow
        assert len(fast) == 36
        assert len(set(fast)) > 3  # not the same token for ever, which would prove little


@pytest.mark.parametrize("prompt_length", [1, 5, 31])
def test_a_model_without_a_longest_text_never_forgets(prompt_length: int) -> None:
    model, lengths = lively("bdh", SHAPE.model_copy(update={"n_hidden": 64})), []
    model.chunk = 10  # the slow path in chunks, too
    prompt = torch.randint(50, (1, prompt_length))
    for temperature in (0.0, 1.0):
        slow = list(generate_ids(model, prompt, 3 * 12, temperature, use_cache=False))
        hook = model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
        assert list(generate_ids(model, prompt, 3 * 12, temperature)) == slow
        hook.remove()
        assert len(set(slow)) > 3
    assert lengths == 2 * [prompt_length, *[1] * 35]


def test_a_model_from_elsewhere_takes_the_slow_path() -> None:
    class Elsewhere(nn.Module):
        """Knows nothing of caches, and has no shape of ours."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.shape = inner, SimpleNamespace(vocab_size=50, block_size=12)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.inner(input_ids)

    model = lively()
    assert list(generate_ids(Elsewhere(model), [1, 2], 30)) == list(generate_ids(model, [1, 2], 30))


def test_the_model_reads_each_token_once_while_the_window_stands() -> None:
    model, lengths = lively(), []
    model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    list(generate_ids(model, [1, 2, 3], 20))
    assert lengths == [3, *[1] * 9, 7, *[1] * 5, 7, *[1] * 3]  # 12 in all; each hop leaves 12 - 6 + 1


@pytest.mark.parametrize("block_size", [1, 2, 3, 8, 13])
def test_window(block_size: int) -> None:
    starts = [window_start(n, block_size) for n in range(1, 200)]
    for n, start in enumerate(starts, start=1):
        assert 1 <= n - start <= block_size
        assert (start == 0) == (n <= block_size)
    steps = {b - a for a, b in pairwise(starts)}
    assert steps == {0, max(1, block_size // 2)} or block_size <= 3
    assert starts == sorted(starts)


def test_the_seed_decides_the_text() -> None:
    model = lively()
    first, second, other = (list(generate_ids(model, [1], 30, seed=seed)) for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_lists_and_tensors_are_the_same_prompt() -> None:
    model = lively()
    first, second, third = (
        list(generate_ids(model, ids, 5)) for ids in ([3, 4], torch.tensor([3, 4]), torch.tensor([[3, 4]]))
    )
    assert first == second == third


def test_global_random_state_is_untouched() -> None:
    model = lively()
    state = torch.get_rng_state()
    list(generate_ids(model, [1], 10))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_model_keeps_of_a_forward_pass_can_be_trained_with() -> None:
    class Keeps(torch.nn.Module):
        task, table = "causal", None

        def __init__(self) -> None:
            super().__init__()
            self.shape, self.weight = SHAPE, torch.nn.Parameter(torch.ones(SHAPE.vocab_size))

        def forward(self, input_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
            if self.table is None:  # as a model of its own making remembers its mask
                self.table = torch.eye(SHAPE.vocab_size)
            return self.table[input_ids] * self.weight

    model = Keeps()
    list(generate_ids(model, [1], 3))
    model(torch.tensor([[1, 2]])).sum().backward()
    assert model.weight.grad is not None


def test_training_mode_comes_back_module_by_module() -> None:
    model = lively().train()
    model.blocks[0].eval()  # a frozen part
    before = {name: module.training for name, module in model.named_modules()}

    def now() -> dict[str, bool]:
        return {name: module.training for name, module in model.named_modules()}

    list(generate_ids(model, [1], 3))
    assert now() == before

    stream = generate_ids(model, [1], 3)
    next(stream)
    assert not any(now().values())
    assert torch.is_grad_enabled()  # between tokens the caller may train something
    stream.close()
    assert now() == before

    pieces = generate_text(model, ByteTokenizer(), "\x01", 30)
    next(pieces)
    pieces.close()
    gc.collect()
    assert now() == before

    failing = generate_ids(model, [1], 3)
    hook = model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(failing)
    hook.remove()
    assert now() == before


def test_zero_tokens_is_an_empty_stream() -> None:
    assert list(generate_ids(lively(), [1], 0)) == []
    assert list(generate_text(lively(), ByteTokenizer(), "\x01", 0)) == []


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        ([], {}, "needs at least one token"),
        (torch.zeros(1, 0), {}, "needs at least one token"),
        ([1, 50], {}, "token id 50 is outside this model's vocabulary of 50 tokens"),
        ([-1], {}, "token id -1 is outside this model's vocabulary of 50 tokens"),
        (torch.ones(2, 3), {}, "ids has 2 rows"),
        ([1], {"max_new_tokens": -1}, "max_new_tokens=-1 must be"),
        ([1], {"temperature": -1.0}, r"temperature=-1\.0 must be"),
        ([1], {"top_p": 2.0}, r"top_p=2\.0 must be"),
    ],
)
def test_mistakes_are_refused_before_the_first_token(ids: list[int], settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_ids(lively(), ids, **{"max_new_tokens": 5, **settings})


def test_pieces_are_whole_characters_and_add_up() -> None:
    text = "naïve €5 🙂🙃 – 漢字\n"
    tokenizer = ByteTokenizer()
    pieces = list(stream_text(tokenizer, iter(tokenizer.encode(text))))
    assert pieces == list(text)


def test_bytes_that_are_no_text_are_flushed_in_the_end() -> None:
    tokenizer = ByteTokenizer()

    def pieces(data: bytes) -> list[str]:
        return list(stream_text(tokenizer, iter(data)))

    assert pieces(b"a\xe2\x82") == ["a", "\ufffd"]
    assert pieces(b"\xffa") == ["\ufffda"]
    assert pieces("a\ufffdb".encode()) == ["a", "\ufffdb"]
    for data in (b"\xff\xfe\xe2\x82\xac!", b"\xf0\x9f\x99", b"", b"\xe2\x82\xff\xe2\x82\xac"):
        assert "".join(pieces(data)) == tokenizer.decode(list(data))


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_generated_text_is_the_decoded_ids(kind: str) -> None:
    model, tokenizer = lively(kind, SHAPE.model_copy(update={"vocab_size": 256})), ByteTokenizer()
    ids = list(generate_ids(model, tokenizer.encode("é"), 60, seed=5))
    pieces: Iterator[str] = generate_text(model, tokenizer, "é", 60, seed=5)
    assert "".join(pieces) == tokenizer.decode(ids)


def test_an_empty_prompt_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="needs at least one token"):
        generate_text(lively(), ByteTokenizer(), "", 5)
