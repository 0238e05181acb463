"""The range test: its arithmetic, that it repeats itself, and that what it suggests trains well."""

import json
import math
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from utils.config.schema import RunConfig
from utils.data.storing.run_store import remember_store
from utils.data.storing.token_store import open_store
from utils.notebook.find_rate import RateView, rate_chart
from utils.runs.folder import RunFolder
from utils.tests.tiny import tiny_config
from utils.training.compiled import Compiled
from utils.training.find_rate import _stepper, find_rate
from utils.training.rate_curve import RateCurve, rising_rates
from utils.training.run import run_training


def curve_of(config: RunConfig, steps: int = 60) -> RateCurve:
    """What the worker does, in this process."""
    run = RunFolder(config.run_dir)
    run.create(config)
    remember_store(run, open_store(config.data))
    rates = rising_rates(steps)
    find_rate(config, rates, run.path / "rates.jsonl")
    losses = [json.loads(line)["loss"] for line in (run.path / "rates.jsonl").read_text().splitlines()]
    losses = losses[: losses.index(None)] if None in losses else losses
    return RateCurve(tuple(rates[: len(losses)]), tuple(losses), len(losses) < steps)


def test_it_computes_as_the_run_will(tmp_path: Path):
    settings = tiny_config(
        tmp_path / "run", "train.compile=on", "train.activation_checkpointing=true", "train.memory_limit_gb=0.01"
    )
    RunFolder(settings.run_dir).create(settings)
    remember_store(RunFolder(settings.run_dir), open_store(settings.data))
    stepper = _stepper(settings, torch.device("cpu"))
    assert stepper.checkpointing
    assert isinstance(stepper._forward, Compiled)
    if sys.platform == "linux":
        with pytest.raises(ValueError, match=r"memory_limit_gb=0\.01 is less than is taken"):
            find_rate(settings, rising_rates(20), tmp_path / "rates.jsonl")


def valley(steps: int = 100, at: float = 1e-2) -> RateCurve:
    """A loss that falls from 5 towards 2 and rises steeply after the rate `at`."""
    rates = rising_rates(steps)
    losses = [2 + 3 / (1 + rate / at * 30) + (rate / at / 3) ** 2 for rate in rates]
    return RateCurve(tuple(rates), tuple(losses))


def test_rates_rise_by_the_same_factor():
    rates = rising_rates(50, 1e-5, 0.5)
    assert (rates[0], rates[-1], len(rates)) == (pytest.approx(1e-5), pytest.approx(0.5), 50)
    factors = [b / a for a, b in pairwise(rates)]
    assert min(factors) == pytest.approx(max(factors))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((9,), "9 steps: a range test takes 10 to 10,000"),
        ((10**6,), "1000000 steps"),
        ((100, 0.0), "from 0 to 1: the first must be above 0"),
        ((100, 1e-3, 1e-3), "from 0.001 to 0.001"),
        ((100, 1e-3, math.inf), "from 0.001 to inf"),
        ((100, math.nan), "from nan to 1"),
    ],
)
def test_what_is_no_range_is_refused(given: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        rising_rates(*given)


def test_the_rule_is_the_smaller_of_the_steepest_and_a_tenth_of_the_lowest():
    curve = valley()
    smoothed = curve.smoothed
    assert smoothed[curve.rates.index(curve.lowest)] == min(smoothed)
    falls = {rate: smoothed[i] - smoothed[i + 2] for i, rate in enumerate(curve.rates[1:-1])}
    assert falls[curve.steepest] == max(falls.values())
    assert curve.suggestion == pytest.approx(min(curve.steepest, curve.lowest / 10), rel=0.05)
    assert curve.suggestion < curve.lowest


def test_the_mean_of_a_constant_is_that_constant():
    assert RateCurve((1.0,) * 30, (3.0,) * 30).smoothed == pytest.approx([3.0] * 30)


def test_there_is_no_suggestion_where_nothing_was_learned():
    rates = tuple(rising_rates(20))
    for losses in ([2.0 + i for i in range(20)], [2.0] * 20):
        curve = RateCurve(rates, tuple(losses))
        assert curve.suggestion is None
        assert "no suggestion" in str(curve)
        assert "no rate made the loss smaller" in RateView(curve)._repr_html_()
    assert RateCurve(rates[:1], (2.0,), stopped=True).suggestion is None


def test_a_test_is_over_when_the_loss_breaks_down():
    def is_over(*losses: float) -> bool:
        return RateCurve(tuple(rising_rates()[: len(losses)]), losses).has_diverged

    assert not is_over(5.0, 4.0, 3.0)
    assert not is_over(*[3.0] * 20, 6.0)  # one bad batch
    assert is_over(*[3.0] * 20, *[9.0] * 5)
    assert is_over(3.0, math.nan)
    assert is_over(3.0, math.inf)


@pytest.mark.parametrize("steps", [30, 100, 400])
def test_the_suggestion_hardly_depends_on_how_many_steps_it_takes(steps: int):
    # With 30 steps neighbouring rates are a factor of 1.6 apart: it cannot be closer than that.
    assert 0.5 < valley(steps).suggestion / valley(100).suggestion < 2


def test_the_same_settings_give_the_same_curve_and_another_seed_another(tmp_path: Path):
    curves = [curve_of(tiny_config(tmp_path / str(i), f"train.seed={seed}"), 20) for i, seed in enumerate((1, 1, 2))]
    assert curves[0] == curves[1] != curves[2]


def test_the_curve_is_that_of_the_optimizer_that_will_train(tmp_path: Path):
    curves = [curve_of(tiny_config(tmp_path / f"{decay}", f"train.weight_decay={decay}"), 30) for decay in (0.0, 5.0)]
    assert curves[0].losses[0] == curves[1].losses[0]
    assert curves[0].losses[-1] != curves[1].losses[-1]


def test_the_suggestion_trains_better_than_far_lower_and_far_higher_rates(tmp_path: Path):
    book = tmp_path / "book"
    book.write_text("".join(f"the cat sat on mat {i % 10} and thought of fish\n" for i in range(300)))
    words = ("model.shape.n_embd=32", "model.shape.dropout=0", "train.max_steps=60", "train.warmup_steps=5",
             "data.source=text", f"data.path={book}", "data.tokenizer=char",
             "train.eval_every=0", "train.save_every=0", "train.sample_every=0", "train.spike=0")  # fmt: skip
    found = curve_of(tiny_config(tmp_path / "curve", *words), 100).suggestion
    losses = {}
    for times in (1 / 30, 1, 30):
        rates = (f"train.learning_rate={found * times}", f"train.min_lr={found * times / 10}")
        losses[times] = run_training(tiny_config(tmp_path / f"{times}", *words, *rates)).progress.val_loss
    print(found, losses)
    assert losses[1] < losses[1 / 30] - 0.2
    assert losses[1] < losses[30] - 0.2


def test_the_picture_stays_in_its_frame_and_shows_the_suggestion():
    for curve in (valley(), valley(12), RateCurve((1e-6, 2e-6), (3.0, 1e9), stopped=True)):
        root = ET.fromstring(rate_chart(curve))
        width, height = map(float, root.get("viewBox").split()[2:])
        for path in root.iter("{http://www.w3.org/2000/svg}path"):
            if "L" in path.get("d"):
                for point in path.get("d")[1:].split("L"):
                    x, y = map(float, point.split(","))
                    assert 0 <= x <= width
                    assert 0 <= y <= height
        words = " ".join(text.text for text in root.iter("{http://www.w3.org/2000/svg}text"))
        assert (f"suggestion {curve.suggestion:g}" in words) if curve.suggestion else ("suggestion" not in words)


def test_the_table_names_the_setting():
    curve = valley()
    assert str(curve).splitlines()[-1].startswith(f"suggestion: train.learning_rate={curve.suggestion:g} (the smaller")
    assert curve.to_dict()["steps"][3] == {
        "learning_rate": curve.rates[3], "loss": curve.losses[3], "smoothed": curve.smoothed[3],
    }  # fmt: skip
