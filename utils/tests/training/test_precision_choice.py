"""Which number format a run computes in: chosen once, by what the processor gains, and kept."""

import json
from pathlib import Path

import pytest
import torch

from utils.runs.folder import RunFolder
from utils.runtime import peak
from utils.tests.tiny import metrics_of, tiny_config, weights_hash
from utils.training.run import run_training

WIDE = (
    "model.shape.n_embd=128",
    "train.sample_every=0",
    "train.max_steps=6",
    "train.eval_every=3",
    "train.save_every=3",
    "train.compile=off",  # which the rates given here would make worth while
)
CPU = torch.device("cpu")


@pytest.fixture
def rates(tmp_path: Path, monkeypatch):
    """Says how fast this processor remembers to be in bf16, fp32 being 1."""
    if not peak.has_bf16_instructions():
        pytest.skip("this processor has no bf16")
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(peak, "_known", {})
    monkeypatch.setattr(peak, "UNDISTURBED", 0.0)
    torch.set_num_threads(1)
    peak.matmul_peak(CPU, "bf16")
    (path,) = (tmp_path / "cache" / "peak").iterdir()

    def remember(bf16: float) -> None:
        path.write_text(json.dumps({"rates": {"fp32": 1.0, "bf16": bf16}}))
        peak._known.clear()

    return remember


def precision(run: Path) -> str:
    return RunFolder(run).read_json("meta")["made_with"]["precision"]


def test_a_model_that_is_wide_enough_computes_in_bf16_where_that_is_faster(tmp_path: Path, rates):
    rates(2.0)
    run_training(tiny_config(tmp_path / "wide", *WIDE))
    run_training(tiny_config(tmp_path / "narrow"))
    run_training(tiny_config(tmp_path / "asked", *WIDE, "train.precision=fp32"))
    rates(1.2)
    run_training(tiny_config(tmp_path / "slow", *WIDE))
    assert [precision(tmp_path / name) for name in ("wide", "narrow", "asked", "slow")] == ["bf16", *["fp32"] * 3]


@pytest.mark.parametrize(("first", "then", "kept"), [(1.0, 5.0, "fp32"), (5.0, 1.0, "bf16")])
def test_a_run_keeps_its_format_whatever_is_faster_later(tmp_path: Path, rates, first: float, then: float, kept: str):
    rates(first)
    run_training(tiny_config(tmp_path / "whole", *WIDE))
    run = RunFolder(tmp_path / "halves")
    config = tiny_config(run.path, *WIDE)
    assert run_training(config, stop=lambda: 2 if run.events("saved") else None).status == "interrupted"
    rates(then)
    assert run_training(config).status == "completed"
    assert precision(run.path) == precision(tmp_path / "whole") == kept
    assert run.events("resumed")[0]["level"] == "exact"
    assert metrics_of(run.path) == metrics_of(tmp_path / "whole")
    assert weights_hash(run.path) == weights_hash(tmp_path / "whole")
