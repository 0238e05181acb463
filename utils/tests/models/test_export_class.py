"""Which class of a model.py is built, and with which arguments."""

import json
import sys
from pathlib import Path

import pytest
import torch

from utils.models.export_class import build_export
from utils.models.export_config import LENGTH, Settings, flatten, number_in
from utils.models.findings import ExportError

HEAD = "import torch\nfrom torch import nn\n"
PART = "class Block(nn.Module):\n    def __init__(self, n): super().__init__(); self.n = n\n"
MODEL = (
    "class Net(nn.Module):\n"
    "    def __init__(self, vocab_size, d_model=8, dropout=0.0):\n"
    "        super().__init__()\n"
    "        self.got = vocab_size, d_model, dropout\n"
    "        self.table = nn.Embedding(vocab_size, d_model)\n"
    "        self.block = Block(1)\n"
)


def export(folder: Path, code: str, config: object = None) -> Path:
    (folder / "model.py").write_text(HEAD + code)
    (folder / "config.json").write_text(json.dumps({} if config is None else config))
    return folder


def failure(folder: Path) -> tuple[str, int, str]:
    """Code, line and text of the one finding."""
    with pytest.raises(ExportError) as caught:
        build_export(folder)
    (finding,) = caught.value.findings
    return finding.code, finding.line, str(finding)


@pytest.mark.parametrize("config", [
    {"vocab_size": 20, "n_embd": 4, "dropout": 0.5, "version": "1"},
    {"config": {"n_vocab": 20, "hidden_size": 4, "dropout_rate": 0.5}},
    {"params": {"vocab_size": 20, "embed_dim": 4, "dropout": 0.5}},
    {"hyperparameters": {"vocab_size": 20, "d_model": 4, "dropout": 0.5}},
    {"model": {"vocab_size": 20, "d_model": 4}, "dropout": 0.5},
    {"nodes": [{"params": {"vocab_size": 20, "d_model": 4}}, {"data": {"params": {"vocab_size": 99, "dropout": 0.5}}}]},
])  # fmt: skip
def test_arguments_come_from_wherever_the_config_keeps_them(tmp_path: Path, config: dict) -> None:
    model, read, notes = build_export(export(tmp_path, PART + MODEL, config))
    assert model.got == (20, 4, 0.5)
    assert read == config
    assert notes == ["class Net: no other class of model.py is made from it"]


def test_a_part_that_only_a_function_of_the_class_makes_is_no_model(tmp_path: Path) -> None:
    code = PART + "def make(): return Block(1)\n" + MODEL.replace("Block(1)", "make()")
    code += "def create(**k): return Net(**k)\n"
    assert type(build_export(export(tmp_path, code, {"vocab_size": 5}))[0]).__name__ == "Net"


def test_a_named_class_wins_and_then_build_model(tmp_path: Path) -> None:
    code = PART + MODEL + "class Other(Net): pass\ndef build_model(vocab_size): return Net(vocab_size + 1)\n"
    assert build_export(export(tmp_path, code, {"vocab_size": 5}))[0].got[0] == 6
    for key in ("model_name", "class_name", "architecture"):
        assert type(build_export(export(tmp_path, code, {"vocab_size": 5, key: "Other"}))[0]).__name__ == "Other"
    titled = export(tmp_path, code, {"vocab_size": 5, "model_name": "my first model"})
    assert build_export(titled)[0].got[0] == 6


def test_a_loss_beside_the_model_is_not_the_model(tmp_path: Path) -> None:
    code = PART + MODEL + "class Smoothing(nn.Module):\n    pass\n"
    assert type(build_export(export(tmp_path, code, {"vocab_size": 5}))[0]).__name__ == "Net"


def test_two_candidates_are_listed_with_lines(tmp_path: Path) -> None:
    code = PART + MODEL + MODEL.replace("Net", "Second")
    found, _, text = failure(export(tmp_path, code, {"vocab_size": 5}))
    assert found == "class-ambiguous"
    assert "Net (line 5), Second (line 11)" in text
    assert "model_name" in text


def test_a_class_that_does_not_exist_names_those_that_do(tmp_path: Path) -> None:
    found, _, text = failure(export(tmp_path, PART + MODEL, {"model_name": "CustomTransformer"}))
    assert found == "class-not-found"
    assert "config.json: model_name is CustomTransformer, but model.py defines Block (line 3), Net (line 5)" in text


def test_a_missing_argument_names_itself_and_what_there_is(tmp_path: Path) -> None:
    found, line, text = failure(export(tmp_path, PART + MODEL, {"d_model": 4, "layers": 2}))
    assert (found, line) == ("missing-argument", 6)
    assert "Net needs vocab_size, which config.json does not have; it has d_model, layers" in text


CONFIG_CLASS = "from dataclasses import dataclass\n@dataclass\nclass NetConfig:\n    n_vocab: int\n    dim: int = 3\n"
TAKES = "class Net(nn.Module):\n    def __init__(self, config{}):\n        super().__init__(); self.got = {}\n"


@pytest.mark.parametrize("code", [
    CONFIG_CLASS + TAKES.format(": NetConfig", "config.n_vocab, config.dim"),
    "from __future__ import annotations\n" + CONFIG_CLASS + TAKES.format(": NetConfig", "config.n_vocab, config.dim"),
    CONFIG_CLASS + TAKES.format(": 'NetConfig | None' = None", "config.n_vocab, config.dim"),
    CONFIG_CLASS + TAKES.format("", "config.n_vocab, config.dim"),
    TAKES.format("", "config.vocab_size, getattr(config, 'missing', 4)"),
    TAKES.format(": dict", "config['vocab_size'], config.get('n_embd', 9)"),
    "class Net(nn.Module):\n    def __init__(self, **kw):\n        super().__init__()\n"
    "        self.got = kw['vocab_size'], kw['d_model']\n",
])  # fmt: skip
def test_a_config_object_is_made_as_the_code_wants_it(tmp_path: Path, code: str) -> None:
    folder = export(tmp_path, code, {"vocab_size": 20, "d_model": 4})
    if "__future__" in code:
        (folder / "model.py").write_text(code.replace("@dataclass", HEAD + "@dataclass"))
    assert build_export(folder)[0].got == (20, 4)


def test_a_constructor_that_raises_is_found_with_its_line(tmp_path: Path) -> None:
    found, line, text = failure(export(tmp_path, TAKES.format("", "config.heads_in_total"), {"vocab_size": 20}))
    assert (found, line) == ("constructor-fails", 5)
    assert "config has no heads_in_total; it has vocab_size" in text


@pytest.mark.parametrize(("code", "expected"), [
    ("x = (", ("syntax-error", 3)),
    ("def f():\n    import no_such_package.deep\nf()\n", ("missing-package", 4)),
    ("\nx = 1 / 0\n", ("import-fails", 4)),
    ("import sys\nsys.exit(1)\n", ("import-fails", 4)),
    ("x = 1\n", ("class-missing", 0)),
])  # fmt: skip
def test_code_that_cannot_be_imported_is_found_with_its_line(tmp_path: Path, code: str, expected: tuple) -> None:
    found, line, text = failure(export(tmp_path, code))
    assert (found, line) == expected
    assert found != "missing-package" or "pip install no_such_package" in text


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    assert failure(tmp_path)[0] == "file-missing"
    assert "config.json" in failure(tmp_path)[2]
    export(tmp_path, MODEL, [1])
    assert "it holds a list" in failure(tmp_path)[2]
    (tmp_path / "config.json").write_text("{")
    assert failure(tmp_path)[:2] == ("config-unreadable", 1)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.py").unlink()
    assert "model.py" in failure(tmp_path)[2]


def test_importing_leaves_the_folder_and_the_random_state_alone(tmp_path: Path) -> None:
    code = PART + MODEL + "torch.manual_seed(3)\nif __name__ == '__main__': raise SystemExit('ran')\n"
    folder = export(tmp_path, code, {"vocab_size": 20})
    before = torch.get_rng_state()
    first, second, third = (build_export(folder, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.table.weight, second.table.weight)
    assert not torch.equal(first.table.weight, third.table.weight)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.py"]
    assert type(first) is not type(second)
    assert type(first).__module__ in sys.modules


def test_settings_answer_to_any_usual_name() -> None:
    flat = flatten({"nodes": [], "d_model": 4, "params": {"d_model": 9, "num_layers": 2}})
    assert flat == Settings(d_model=4, num_layers=2)
    assert (flat.n_embd, flat["hidden_size"], flat.get("n_layer"), flat.get("rope")) == (4, 4, 2, None)
    assert not hasattr(flat, "vocab_size")


def test_what_transformers_calls_max_length_is_no_block_size() -> None:
    assert number_in(flatten({"max_length": 20}), LENGTH) == 20
    assert number_in(flatten({"max_length": 20, "transformers_version": "4.56.0"}), LENGTH) == 0
    assert number_in(flatten({"vocab_size": True}), ("vocab_size",)) == 0
