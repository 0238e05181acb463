"""Sampling draws from the distribution it says, and only from tokens it keeps."""

import math

import pytest
import torch

from utils.inference.sampling import keep_top_k, keep_top_p, sample

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, 0.0, 1.5], [0.0, 3.0, -2.0, 1.0, 2.5, 0.1]])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_greedy_and_its_limits() -> None:
    greedy = LOGITS.argmax(dim=-1)
    assert torch.equal(sample(LOGITS, temperature=0), greedy)
    for seed in range(20):
        assert torch.equal(sample(LOGITS, top_k=1, generator=rng(seed)), greedy)
        assert torch.equal(sample(LOGITS, top_p=1e-6, generator=rng(seed)), greedy)
        assert torch.equal(sample(LOGITS * 1e4, temperature=1e-30, generator=rng(seed)), greedy)


def test_the_same_seed_draws_the_same() -> None:
    flat = torch.zeros(64, 100)
    first, second, other = (sample(flat, generator=rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (64,)
    assert first.dtype == torch.int64


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature: float) -> None:
    n = 20_000
    drawn = sample(LOGITS[:1].expand(n, -1), temperature=temperature, generator=rng())
    expected = (LOGITS[0] / temperature).softmax(dim=-1) * n
    chi_square = ((drawn.bincount(minlength=6) - expected) ** 2 / expected).sum().item()
    assert chi_square < 20.5  # 5 degrees of freedom: by chance once in a thousand, and the seed is fixed


def test_excluded_tokens_are_never_drawn() -> None:
    many = LOGITS[:1].expand(5_000, -1)
    assert set(sample(many, top_k=3, generator=rng()).tolist()) == {0, 1, 5}
    probs = LOGITS[0].softmax(dim=-1)
    just_two = (probs[0] + probs[5] - 0.01).item()
    assert set(sample(many, top_p=just_two, generator=rng()).tolist()) == {0, 5}
    assert set(sample(many, top_k=2, top_p=0.99, generator=rng()).tolist()) == {0, 5}
    masked = torch.tensor([[0.0, -math.inf, 0.0]]).expand(1_000, -1)
    assert set(sample(masked, generator=rng()).tolist()) == {0, 2}


def test_top_k_keeps_exactly_k_even_among_equals() -> None:
    kept = keep_top_k(torch.zeros(2, 10), 4).isfinite().sum(dim=-1)
    assert kept.tolist() == [4, 4]
    assert torch.equal(keep_top_k(LOGITS, 100), LOGITS)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float) -> None:
    kept = keep_top_p(LOGITS, p).isfinite()
    for probs, mask in zip(LOGITS.softmax(dim=-1), kept, strict=True):
        assert mask.any()
        assert probs[mask].sum() >= p - 1e-6
        assert probs[mask].sum() - probs[mask].min() < p  # one token fewer would not
        if not mask.all():
            assert probs[mask].min() >= probs[~mask].max()


def test_top_p_reaches_exactly_half() -> None:
    assert keep_top_p(torch.zeros(1, 4), 0.5).isfinite().sum() == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -0.1}, r"temperature=-0\.1 must be 0"),
        ({"temperature": math.nan}, "temperature=nan must be"),
        ({"temperature": math.inf}, "temperature=inf must be"),
        ({"top_k": -1}, "top_k=-1 must be a number of tokens, or 0"),
        ({"top_p": 0.0}, r"top_p=0\.0 must be a probability above 0 and at most 1"),
        ({"top_p": 1.1}, r"top_p=1\.1 must be a probability"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(LOGITS, **setting)
