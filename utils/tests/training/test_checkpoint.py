"""Writing checkpoints: whole or not there, matched by name, pruned with care."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from utils.config.schema import ModelConfig, ModelShape
from utils.data.tokenizing.tokenizer import build_tokenizer
from utils.models.registry import build_model
from utils.runs.checkpoints import best_checkpoint, newest_checkpoint, verify
from utils.training.checkpoint import Checkpointer, load_checkpoint

SHAPE = ModelShape(n_layer=1, n_head=2, n_embd=8, block_size=8, vocab_size=256)
CONFIG = ModelConfig(kind="gpt", shape=SHAPE)


def parts(seed: int = 0, steps: int = 2):
    """A model and an optimizer that has moved."""
    torch.manual_seed(seed)
    model = build_model("gpt", SHAPE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for _ in range(steps):
        model(torch.randint(0, 256, (2, 8))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.fixture
def checkpointer(tmp_path: Path) -> Checkpointer:
    return Checkpointer(tmp_path, CONFIG, build_tokenizer("byte", ""), keep_last=2)


def steps_in(root: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in root.glob("step-*"))


def test_round_trip_is_exact(checkpointer: Checkpointer):
    model, optimizer = parts()
    folder = checkpointer.save(7, model, optimizer, {"note": 0.1})
    other, fresh = parts(seed=1)
    assert load_checkpoint(folder, other, fresh)["note"] == 0.1
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(optimizer.state.values(), fresh.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_tied_weights_stay_tied(checkpointer: Checkpointer):
    model, optimizer = parts()
    folder = checkpointer.save(1, model, optimizer, {})
    other, fresh = parts(seed=1)
    load_checkpoint(folder, other, fresh)
    assert other.head.weight is other.token_embedding.weight


def test_weights_that_are_not_finite_are_never_saved(checkpointer: Checkpointer):
    model, optimizer = parts()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite at step 3: not saved"):
        checkpointer.save(3, model, optimizer, {})
    assert list(checkpointer.root.iterdir()) == []


def test_a_saved_step_is_immutable_and_a_broken_one_is_replaced(checkpointer: Checkpointer):
    model, optimizer = parts()
    folder = checkpointer.save(1, model, optimizer, {})
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    checkpointer.save(1, model, optimizer, {})
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    (folder / "trainer.json").write_text("{}")
    assert verify(folder) is None
    checkpointer.save(1, model, optimizer, {})
    assert verify(folder) is not None


def test_pruning_keeps_the_newest_and_the_best_and_clears_what_kills_left(checkpointer: Checkpointer):
    model, optimizer = parts()
    for step in (1, 2, 3, 4):
        checkpointer.save(step, model, optimizer, {})
        if step == 2:
            checkpointer.mark_best(2, 0.5)
    for left in ("step-0000000009.tmp-4242", "step-0000000001.del"):
        (checkpointer.root / left).mkdir()
    checkpointer.prune(4)
    assert sorted(path.name for path in checkpointer.root.iterdir()) == [
        "best.json", "step-0000000002", "step-0000000003", "step-0000000004",
    ]  # fmt: skip
    assert best_checkpoint(checkpointer.root).name == "step-0000000002"
    assert newest_checkpoint(checkpointer.root)[0].name == "step-0000000004"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.norm_1.weight/exp_avg": torch.zeros(9)}, r"float32 \(9,\), the model has float32 \(8,\)"),
        ({"blocks.0.norm_1.weight/exp_avg": torch.zeros(8).bfloat16()}, r"bfloat16 \(8,\)"),
        ({"stranger/exp_avg": torch.zeros(1)}, "parameters the model lacks: stranger"),
    ],
)
def test_optimizer_state_that_does_not_fit_is_refused(checkpointer: Checkpointer, change: dict, message: str):
    model, optimizer = parts()
    folder = checkpointer.save(1, model, optimizer, {})
    path = folder / "optimizer.safetensors"
    save_file({**load_file(path), **change}, path)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder, model, optimizer)


def test_an_unknown_format_is_refused(checkpointer: Checkpointer):
    model, optimizer = parts()
    folder = checkpointer.save(1, model, optimizer, {})
    (folder / "trainer.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="has format 99; this version reads format 1"):
        load_checkpoint(folder, model, optimizer)


@pytest.mark.parametrize("keep_last", [1, 2])
def test_pruning_never_removes_the_only_good_one(checkpointer: Checkpointer, keep_last: int):
    checkpointer.keep_last = keep_last
    model, optimizer = parts()
    for step in (30, 31):  # later ones, found damaged
        (checkpointer.save(step, model, optimizer, {}) / "trainer.json").write_text("{}")
    checkpointer.save(15, model, optimizer, {})
    (checkpointer.root / "step-0000000030.del").mkdir()  # left by a killed process
    (checkpointer.root / "step-0000000030.del/file").write_text("")
    checkpointer.prune(15)
    assert [path.name for path in checkpointer.root.iterdir()] == ["step-0000000015"]
    assert newest_checkpoint(checkpointer.root)[0].name == "step-0000000015"
