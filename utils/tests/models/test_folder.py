"""A model folder gives back the model that was written, or says in one sentence why not."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.config.schema import ModelConfig, ModelShape
from utils.models.folder import load_model_folder, save_model, unwrap
from utils.models.registry import build_model

SHAPE = ModelShape(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=20)


class Compiled(nn.Module):
    """Wraps as torch.compile does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


class Parallel(nn.Module):
    """Wraps as DistributedDataParallel does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "m", build_model("llama", SHAPE), ModelConfig(kind="llama", shape=SHAPE))
    return tmp_path / "m"


@pytest.mark.parametrize("kind", ["gpt", "llama"])  # a bdh: test_bdh.py
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_exact(tmp_path: Path, kind: str, tied: bool) -> None:
    shape = SHAPE.model_copy(update={"tie_embeddings": tied})
    config = ModelConfig.model_validate({"kind": kind, "shape": shape})
    model = build_model(kind, shape)
    save_model(tmp_path / "a" / "b", model, config)
    state = torch.get_rng_state()
    again, found = load_model_folder(tmp_path / "a" / "b")
    assert torch.equal(torch.get_rng_state(), state)
    assert found == config
    assert (again.head.weight is again.token_embedding.weight) == tied
    for (name, old), (other, new) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(old, new)
    ids = torch.randint(20, (2, 8))
    assert torch.equal(model(ids), again(ids))


def test_wrappers_leave_no_trace(tmp_path: Path) -> None:
    model = build_model("gpt", SHAPE)
    wrapped = Parallel(Compiled(model))
    assert unwrap(wrapped) is model
    assert unwrap(model) is model
    config = ModelConfig(kind="gpt", shape=SHAPE)
    save_model(tmp_path / "plain", model, config)
    save_model(tmp_path / "wrapped", wrapped, config)
    plain, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "wrapped"))
    assert plain == other


def test_unwrap_sees_through_torch_compile() -> None:
    model = build_model("gpt", SHAPE)
    assert unwrap(torch.compile(model)) is model


def test_unwrap_keeps_a_model_that_only_looks_wrapped() -> None:
    model = Parallel(nn.Linear(2, 2))
    model.head = nn.Linear(2, 2)
    assert unwrap(model) is model


def test_the_shape_written_is_the_models_own(tmp_path: Path) -> None:
    save_model(tmp_path, build_model("gpt", SHAPE), ModelConfig(kind="gpt"))
    assert load_model_folder(tmp_path)[1].shape == SHAPE


def test_config_is_plain_json(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    assert content == {"format": 1, "kind": "llama", "shape": SHAPE.model_dump()}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing: a model folder holds"):
        load_model_folder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, but only format 1 can be read"),
        ({"format": None}, "has format None, but only format 1"),
        ({"kind": "mamba"}, "does not describe a model: kind"),
        ({"shape": {"n_layer": -1}}, r"does not describe a model: shape\.n_layer"),
        ({"shape": {**SHAPE.model_dump(), "n_embd": 32}}, r"does not fit the shape in config\.json"),
        ({"shape": {**SHAPE.model_dump(), "n_layer": 3}}, r"model\.safetensors does not fit .*blocks\.2"),
        ({"shape": {**SHAPE.model_dump(), "n_layer": 1}}, r"model\.safetensors does not fit .*blocks\.1"),
        ({"kind": "gpt"}, r"model\.safetensors does not fit"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, change: dict, message: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_model_folder(folder)


def test_damaged_files_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-7], b"", b"\xff" * 40):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            load_model_folder(folder)
    for text in (b'{"format": 1,', b"\xff\xfe\x00"):
        (folder / "config.json").write_bytes(text)
        with pytest.raises(ValueError, match=r"config\.json is not JSON"):
            load_model_folder(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="has format None"):
        load_model_folder(folder)
