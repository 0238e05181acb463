"""A model that ends the process that asks it is told so, and asked on where that makes sense."""

from pathlib import Path

import pytest

from utils.jobs.describe import describe_model, start_for
from utils.jobs.find_model import find_model, settings_in
from utils.jobs.validate import validate
from utils.models.findings import ExportError
from utils.runs.folder import RunFolder
from utils.tests.tiny import tiny_config

MODEL = """
import ctypes, torch
from torch import nn
from utils.tests.walls import needs_walls

pytestmark = needs_walls


class Model(nn.Module):
    def __init__(self, vocab_size=64):
        super().__init__()
        self.emb, self.rnn = nn.Embedding(vocab_size, 16), nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, vocab_size)

    def forward(self, idx):
        {act}
        return self.head(self.rnn(self.emb(idx))[0])
"""


def export(tmp_path: Path, act: str) -> str:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL.format(act=act))
    (folder / "config.json").write_text('{"vocab_size": 64, "block_size": 32}')
    return str(folder)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))


def test_a_crash_in_some_checks_leaves_the_others(tmp_path: Path):
    name = export(tmp_path, "self.training and len(idx) == 4 and torch.is_grad_enabled() and ctypes.string_at(0)")
    checks = {check.name: check for check in validate(find_model(name))}
    crashed = [check.name for check in checks.values() if "killed by SIGSEGV" in check.measured]
    assert crashed == ["gradients"]
    assert checks["gradients"].status == "fail"
    assert {checks[name].status for name in ("causality", "determinism", "learning", "speed")} == {"pass"}


def test_a_model_that_answers_nothing_is_not_asked_on(tmp_path: Path):
    checks = {check.name: check for check in validate(find_model(export(tmp_path, "import os; os._exit(3)")))}
    assert "ended with code 3" in checks["built"].measured
    assert checks["the rest"].status == "skip"


def test_a_model_that_cannot_be_built_is_described_by_what_is_wrong(tmp_path: Path):
    with pytest.raises(ExportError, match=r"model.py"):
        describe_model(find_model(export(tmp_path, "return self.emb(idx)")))


def test_a_run_knows_the_model_it_trains(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.create(tiny_config(run.path, "model.kind=builder", "model.ref=there", f"model.revision={'a' * 40}"))
    assert settings_in(run.path, "there") == ["model.kind=builder", "model.ref=there", f"model.revision={'a' * 40}"]
    assert settings_in(run.path, "elsewhere") == settings_in(tmp_path / "none", "there") == []


def test_without_walls_a_strangers_code_runs_by_consent_to_its_hash_only(tmp_path: Path):
    found = find_model(export(tmp_path, "pass"))
    out = tmp_path / "out"
    out.mkdir()
    arguments = {"kind": found.kind, "where": found.place, "name": "", "out": str(out / "facts.json")}
    options = {"read": found.read, "write": [out], "without": ("landlock", "seccomp", "user")}
    target = "utils.inference.describe:write_description"
    with pytest.raises(ValueError, match=rf"not isolated: .* private files .* --trust-sha256 {found.sha256}"):
        start_for(found, "", target, arguments, **options)
    assert not (out / "facts.json").exists()
    with start_for(found, found.sha256, target, arguments, **options) as box:
        assert not box.isolated
        assert box.wait().code == 0
    assert (out / "facts.json").exists()
