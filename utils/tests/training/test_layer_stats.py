"""Statistics of layers: true to the arithmetic of the step, harmless to it, and read with care."""

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from utils.cli.main import app
from utils.config.schema import TrainConfig
from utils.data.batching.batches import TrainBatches
from utils.data.batching.tasks import TaskBatches
from utils.jobs.launch import prepare_inline
from utils.notebook.layers import colour, heat_map, show_layers
from utils.runs.folder import RunFolder
from utils.runs.layers import BINS, bars
from utils.runtime.files import sha256_file
from utils.tests.tiny import metrics_of, tiny_config, weights_hash
from utils.tests.training.test_trainer import CPU, tiny_gpt
from utils.training.layer_stats import LayerStats, exponents, histogram
from utils.training.run import run_training
from utils.training.step import Stepper

EXPORTS = Path(__file__).parents[3] / "tests" / "exports"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that looked at every third step, of which clipping cut every gradient."""
    folder = tmp_path_factory.mktemp("runs") / "looked-at"
    run_training(tiny_config(folder, "train.stats_every=3", "train.grad_clip=0.01"))
    return folder


def test_a_histogram_counts_each_power_of_two_and_neither_zeros_nor_what_is_not_finite():
    torch.manual_seed(0)
    values = torch.cat([
        torch.randn(5000) * 2.0 ** torch.randint(-60, 30, (5000,)),
        torch.tensor([0.0, -0.0, 1e-42, math.inf, -math.inf, math.nan, 2.0**-40, 2.0**8]),
    ])  # fmt: skip
    zeros, counts = exponents(values)
    assert (zeros, counts[-1], sum(counts)) == (2, 3, 5006)
    expected = [0] * BINS
    for value in values.double().abs().tolist():
        if value and math.isfinite(value):
            expected[min(max(math.floor((math.floor(math.log2(value)) + 40) / 2), 0), BINS - 1)] += 1
    assert histogram(counts) == expected


def test_the_norms_are_those_of_a_step_done_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(3, 3))
    model[2].bias.requires_grad_(False)
    model[1].bias.data.zero_()
    model[:2](torch.randn(5, 4)).square().sum().backward()
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    stats = LayerStats(model)
    stats.before()
    with torch.no_grad():
        for parameter in model[:2].parameters():
            parameter -= 0.1 * parameter.grad
    rows = {row["name"]: row for row in stats.rows()}
    assert set(rows) == set(old) - {"2.bias"}
    for name in ("0.weight", "0.bias", "1.weight"):
        gradient, row = model.get_parameter(name).grad.norm().item(), rows[name]
        assert row["gradient_norm"] == pytest.approx(gradient)
        assert row["weight_norm"] == pytest.approx(old[name].norm().item())
        assert row["update_ratio"] == pytest.approx(0.1 * gradient / old[name].norm().item(), rel=1e-4)
        assert sum(row["histogram"]) == row["size"] == old[name].numel()
        assert row["shape"] == list(old[name].shape)
    assert rows["1.bias"]["update_ratio"] is None  # a share of nothing
    idle = rows["2.weight"]
    assert (idle["gradient_norm"], idle["update_ratio"], sum(idle["histogram"])) == (None, 0.0, 0)


def test_gradients_are_looked_at_before_they_are_clipped(run: Path):
    whole = {row["step"]: row["gradient_norm"] for row in metrics_of(run) if row["kind"] == "train"}
    rows = RunFolder(run).layers()
    assert sorted({row["step"] for row in rows}) == [3, 6, 9, 12]
    for step in (3, 6, 9, 12):
        squares = sum(row["gradient_norm"] ** 2 for row in rows if row["step"] == step)
        assert math.sqrt(squares) == pytest.approx(whole[step], rel=1e-4)
        assert whole[step] > 0.01  # or nothing was clipped


def test_looking_changes_nothing(run: Path, tmp_path: Path):
    run_training(tiny_config(tmp_path / "blind", "train.stats_every=0", "train.grad_clip=0.01"))
    assert weights_hash(tmp_path / "blind") == weights_hash(run)
    assert metrics_of(tmp_path / "blind") == metrics_of(run)
    assert not (tmp_path / "blind" / "layers.jsonl").exists()


def test_a_resumed_run_has_the_same_rows_once(run: Path, tmp_path: Path):
    config = tiny_config(tmp_path / "cut", "train.stats_every=3", "train.grad_clip=0.01")
    folder = RunFolder(config.run_dir)
    run_training(config, lambda: 2 if any(row["step"] >= 7 for row in folder.metrics()) else None)
    once = (folder.path / "layers.jsonl").read_bytes()
    (folder.path / "layers.jsonl").write_bytes(once + once[:-20])  # steps done twice, the last row torn by a kill
    run_training(config)
    assert folder.layers() == RunFolder(run).layers()


def test_with_scaled_losses_gradients_are_those_of_the_loss_itself():
    ids = torch.randint(0, 20, (3000,), generator=torch.Generator().manual_seed(1)).numpy()
    rows = {}
    for precision in ("fp32", "fp16"):
        config = TrainConfig(batch_size=8, max_steps=5)
        train = TaskBatches(TrainBatches(ids, 32, 8, 1))
        stepper = Stepper(tiny_gpt(20), config, train, CPU, precision)
        stepper.layers = LayerStats(stepper.model)
        stepper.step(0, 1e-3)
        rows[precision] = {row["name"]: row for row in stepper.layers.rows()}
    assert stepper.scaler.get_scale() > 1000
    for name, row in rows["fp32"].items():
        assert rows["fp16"][name]["gradient_norm"] == pytest.approx(row["gradient_norm"], rel=0.05, abs=1e-4), name
        assert rows["fp16"][name]["update_ratio"] or not row["weight_norm"], name


def test_where_memory_is_too_small_for_a_second_copy_the_update_alone_is_left_out(monkeypatch):
    model = nn.Linear(4, 2)
    model(torch.randn(3, 4)).sum().backward()
    stats = LayerStats(model)

    def full(tensor: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.Tensor, "clone", full)
    stats.before()
    for row in stats.rows():
        assert row["update_ratio"] is None
        assert row["gradient_norm"] > 0


def test_a_model_from_elsewhere_is_looked_at_too(tmp_path: Path):
    where = EXPORTS / "decoder"
    config = tiny_config(tmp_path / "run", "model.kind=builder", f"model.ref={where}", "train.max_steps=2",
                         f"model.trust_sha256={sha256_file(where / 'model.py')}", "train.stats_every=2")  # fmt: skip
    run_training(prepare_inline(config))
    rows = RunFolder(tmp_path / "run").layers()
    assert {row["step"] for row in rows} == {2}
    assert sum(row["update_ratio"] is not None and row["update_ratio"] > 0 for row in rows) > 3


def test_rows_that_a_stranger_wrote_are_left_out_or_made_harmless(run: Path, tmp_path: Path):
    good = next(row for row in RunFolder(run).layers() if row["step"] == 3)
    bad = [{"name": 3}, {"name": "x" * 1000}, {"step": -1}, {"step": True}, {"shape": "4"}, {"shape": [1.5]},
           {"shape": [1] * 100}, {"histogram": [1] * 23}, {"histogram": ["1"] * 24}, {"histogram": None},
           {"zeros": -1}, {"size": 1e9}, {"not_finite": None}]  # fmt: skip
    lines = [json.dumps(good | change) for change in bad]
    odd = good | {"name": "odd", "weight_norm": "heavy", "update_ratio": 1e999, "extra": "x"}
    (tmp_path / "layers.jsonl").write_text("\n".join([*lines, "[]", "{", json.dumps(odd), json.dumps(good)]) + "\n")
    assert RunFolder(tmp_path).layers() == [
        {key: value for key, value in odd.items() if key != "extra"} | {"weight_norm": None, "update_ratio": None},
        good,
    ]


def test_the_command_shows_the_last_step_and_gives_a_machine_all(run: Path, tmp_path: Path):
    shown = CliRunner().invoke(app, ["layers", str(run)], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "step 12\n" in shown.stdout
    assert "blocks.0.attention.qkv.weight" in shown.stdout
    told = CliRunner().invoke(app, ["layers", str(run), "--json"], catch_exceptions=False)
    assert json.loads(told.stdout)["layers"] == RunFolder(run).layers()
    run_training(tiny_config(tmp_path / "short", "train.max_steps=2"))
    none = CliRunner().invoke(app, ["layers", str(tmp_path / "short")], catch_exceptions=False)
    assert "train.stats_every" in none.stdout


def test_the_picture_has_a_cell_for_each_layer_and_step(run: Path):
    rows = RunFolder(run).layers()
    page = show_layers(run)._repr_html_()
    root = ET.fromstring(heat_map(rows))
    width, height = map(float, root.get("viewBox").split()[2:])
    cells = [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if len(rect)]
    assert len(cells) == len(rows)
    for rect in cells:
        assert 0 <= float(rect.get("x")) <= width - float(rect.get("width"))
        assert 0 <= float(rect.get("y")) <= height - float(rect.get("height"))
    assert "step 12" in page
    assert "step 12" in repr(show_layers(run))


def test_the_picture_of_a_large_model_and_a_long_run_stays_small(run: Path):
    row = next(row for row in RunFolder(run).layers() if len(row["shape"]) == 2)
    vectors = [row | {"name": f"bias.{i}", "shape": [4], "step": 0} for i in range(500)]
    many = [row | {"name": f"<b>{i}</b>", "step": step} for step in range(0, 50_000, 500) for i in range(200)]
    svg = heat_map([*vectors, *many])
    cells = [rect for rect in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect") if len(rect)]
    assert len(cells) == 60 * 80
    assert "bias." not in svg
    assert "<b>" not in svg
    assert heat_map([]) == ""


def test_colours_tell_too_little_from_too_much():
    def red_and_blue(ratio: float) -> tuple[int, int]:
        return int(colour(ratio)[1:3], 16), int(colour(ratio)[5:], 16)

    assert red_and_blue(1e-5)[0] < red_and_blue(1e-4)[0] < red_and_blue(1e-3)[0]
    assert red_and_blue(1e-1)[1] < red_and_blue(1e-2)[1] < red_and_blue(1e-3)[1]
    assert colour(0.0) == colour(1e-9) == colour(1e-5)
    assert colour(None) == "none"


def test_bars_show_the_smallest_count():
    assert bars([0, 1, 1000]) == " ▁█"
