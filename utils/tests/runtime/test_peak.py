"""What a device could do at most: the vendor's number or a measured one, which is remembered where it can be."""

import json
import time
from pathlib import Path

import pytest
import torch

from utils.runtime import peak
from utils.runtime.device import pick_precision

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache, and a process that has measured nothing yet and minds no neighbours."""
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(peak, "_known", {})
    monkeypatch.setattr(peak, "UNDISTURBED", 0.0)
    return tmp_path / "cache" / "peak"


def remember(cache: Path, **rates: float) -> None:
    """Change what is remembered, and forget what this process knows."""
    (path,) = cache.iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rates": rates}))
    peak._known.clear()


def test_a_measured_rate_is_that_of_real_products_and_takes_no_time(cache: Path):
    began = time.perf_counter()
    rate = peak.matmul_peak(CPU, "fp32")
    assert time.perf_counter() - began < 5  # half a second where nobody else works
    a = torch.ones(512, 512)
    began = time.perf_counter()
    for _ in range(5):
        a @ a
    seconds = (time.perf_counter() - began) / 5
    assert 0.1 < rate / (2 * 512**3 / seconds) < 100  # a busy machine may be fast now and slow then


def test_it_is_measured_once_and_then_remembered(cache: Path):
    first = peak.matmul_peak(CPU, "fp32")
    assert peak.matmul_peak(CPU, "fp32") == first
    remember(cache, fp32=123.0, bf16=456.0)
    assert peak.matmul_peak(CPU, "fp32") == 123.0
    assert len(list(cache.iterdir())) == 1


def test_another_number_of_threads_is_another_rate(cache: Path):
    peak.matmul_peak(CPU, "fp32")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        peak.matmul_peak(CPU, "fp32")
    finally:
        torch.set_num_threads(before)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("nonsense", ["", "{", "[]", '{"rates": {"fp32": "x"}}', '{"rates": {"fp32": -1, "bf16": 1}}'])
def test_a_damaged_memory_is_measured_again(cache: Path, nonsense: str):
    peak.matmul_peak(CPU, "fp32")
    (path,) = cache.iterdir()
    path.write_text(nonsense)
    peak._known.clear()
    assert peak.matmul_peak(CPU, "fp32") > 1e6
    assert json.loads(path.read_text())["rates"]["fp32"] > 1e6


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(peak, "_known", {})
    assert peak.matmul_peak(CPU, "fp32") > 1e6


def test_a_rate_measured_while_others_had_the_cores_is_not_remembered(cache: Path, monkeypatch):
    monkeypatch.setattr(peak, "UNDISTURBED", 100.0)
    assert peak.matmul_peak(CPU, "fp32") > 1e6
    assert not cache.exists()


def test_products_too_large_for_the_memory_are_left_out(cache: Path, monkeypatch):
    multiply, limit = peak._multiply, [1024]

    def refuse(matrix: torch.Tensor, device: torch.device) -> None:
        if len(matrix) >= limit[0]:
            raise RuntimeError("could not create a primitive")
        multiply(matrix, device)

    monkeypatch.setattr(peak, "_multiply", refuse)
    monkeypatch.setattr(peak, "SECONDS", 10.0)
    assert peak._measure(CPU, ("fp32",))["fp32"] > 1e6
    limit[0] = 1
    with pytest.raises(RuntimeError, match="primitive"):
        peak._measure(CPU, ("fp32",))


def test_measuring_draws_no_random_numbers(cache: Path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    peak.matmul_peak(CPU, "fp32")
    assert torch.equal(torch.rand(3), expected)


def test_bf16_is_chosen_where_the_processor_has_it_and_gains_enough(cache: Path):
    if not peak.has_bf16_instructions():
        assert pick_precision("auto", CPU) == "fp32"
        return
    peak.matmul_peak(CPU, "bf16")
    remember(cache, fp32=100.0, bf16=129.0)
    assert pick_precision("auto", CPU) == "fp32"
    remember(cache, fp32=100.0, bf16=131.0)
    assert pick_precision("auto", CPU) == "bf16"
    assert pick_precision("auto", CPU, gains=False) == "fp32"


@pytest.mark.parametrize(
    ("card", "name", "tf32", "rate"),
    [
        ("NVIDIA H200", "bf16", True, 989e12),
        ("NVIDIA H200", "fp32", True, 494e12),
        ("NVIDIA H200", "fp32", False, 66.9e12),
        ("NVIDIA A10G", "bf16", True, 70e12),
        ("Tesla T4", "fp16", True, 65e12),
        ("Tesla T4", "fp32", True, 8.1e12),
        ("Tesla T4", "bf16", True, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "fp16", True, None),
    ],
)
def test_cards_are_known_by_their_whole_name(card, name, tf32, rate):
    assert peak._stated(card, name, tf32) == (rate and pytest.approx(rate))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_no_card_is_faster_than_its_vendor_says(cache: Path):
    device = torch.device("cuda")
    stated = peak._stated(torch.cuda.get_device_name(device), "fp16", True)
    measured = peak._measure(device, ("fp16",))["fp16"]
    assert measured > 1e12
    assert stated is None or 0.3 * stated < measured < 1.1 * stated
