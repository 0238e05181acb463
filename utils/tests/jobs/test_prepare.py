"""What happens before a worker starts: models fetched, pinned, fitted to, copied into the run, or refused."""

import shutil
from pathlib import Path

import pytest

from utils.jobs.launch import prepare_inline
from utils.jobs.prepare import fit, place, prepare
from utils.models.findings import ExportError
from utils.runs.folder import RunFolder
from utils.runtime.files import sha256_file
from utils.tests.models.github_server import FIRST, ID, SECOND, GitHub
from utils.tests.tiny import tiny_config
from utils.tests.walls import needs_walls

pytestmark = needs_walls

EXPORTS = Path(__file__).parents[3] / "tests" / "exports"
DECODER = EXPORTS / "decoder"


def config(tmp_path: Path, ref: object, *words: str):
    return tiny_config(tmp_path / "run", "model.kind=builder", f"model.ref={ref}", *words)


def facts(rows: int, longest: int = 64, task: str = "causal") -> dict:
    return {"vocab_size": rows, "block_size": longest, "task": task}


def test_a_built_in_needs_nothing(tmp_path: Path):
    settings = tiny_config(tmp_path / "run")
    assert prepare(settings).config == settings
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "task", "tokenizer", "vocab_size"),
    [
        (2000, "causal", "bpe", 1024), (1024, "causal", "bpe", 1024), (1024, "masked", "bpe", 1023),
        (1023, "seq2seq", "bpe", 1023), (257, "causal", "bpe", 257), (256, "causal", "byte", 1024),
        (257, "masked", "byte", 1024), (255, "causal", "char", 1024),
    ],
)  # fmt: skip
def test_the_vocabulary_is_lowered_to_the_table(tmp_path: Path, rows, task, tokenizer, vocab_size):
    settings = tiny_config(tmp_path, "data.tokenizer=bpe", "data.vocab_size=1024")
    fitted, notes = fit(settings, facts(rows, task=task))
    assert (fitted.data.tokenizer, fitted.data.vocab_size) == (tokenizer, vocab_size)
    assert bool(notes) == (fitted.data != settings.data)


def test_the_length_is_lowered_to_the_limit(tmp_path: Path):
    fitted, notes = fit(tiny_config(tmp_path), facts(1000, 9))
    assert fitted.data.seq_len == 9
    assert notes == ("fitted to the model: data.seq_len=9: it reads at most 9 tokens",)


def test_a_classifier_is_given_classes(tmp_path: Path):
    fitted, notes = fit(tiny_config(tmp_path), facts(1000, task="classification"))
    assert fitted.data.task == "classification"
    assert notes == ("fitted to the model: data.task=classification: it is a classifier",)
    assert fit(tiny_config(tmp_path), facts(1000, task="masked"))[0].data.task == "auto"


def test_trained_weights_are_not_given_other_tokens_in_silence(tmp_path: Path):
    import transformers

    shape = {"vocab_size": 600, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 1}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).save_pretrained(tmp_path / "gpt2")
    words = ("model.kind=hub", f"model.ref={tmp_path / 'gpt2'}", "data.tokenizer=auto")
    notes = prepare(tiny_config(tmp_path / "run", *words)).notes
    assert any("know other tokens than data.tokenizer=bpe makes" in note for note in notes)
    notes = prepare(tiny_config(tmp_path / "run", *words, "model.pretrained=false")).notes
    assert not any("know other tokens" in note for note in notes)


def test_an_export_is_looked_at_pinned_and_copied(tmp_path: Path):
    prepared = prepare(config(tmp_path, DECODER))
    assert prepared.facts["task"] == "causal"
    run = RunFolder(tmp_path / "run")
    run.create(prepared.config)
    place(prepared)
    assert (run.path / "source" / "model.py").read_bytes() == (DECODER / "model.py").read_bytes()
    told = run.read_json("source")
    assert told["source"]["sha256"]["model.py"] == sha256_file(DECODER / "model.py")
    again = prepare(config(tmp_path, DECODER))
    assert again.config == prepared.config
    assert Path(again.found.where) == run.path / "source"  # it is not looked for anywhere else


def test_the_newest_revision_is_pinned_and_another_can_be_named(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))
    published = {path.name: path.read_bytes() for path in DECODER.iterdir()}
    with GitHub() as github:
        monkeypatch.setenv("GITHUB_API_URL", github.url)
        github.put(published, FIRST)
        github.put(published | {"model.py": published["model.py"] + b"# newer\n"}, SECOND)
        newest = prepare(config(tmp_path, ID))
        older = prepare(config(tmp_path, ID, f"model.revision={FIRST}"))
        RunFolder(tmp_path / "run").create(older.config)  # and killed before its files were copied
        assert prepare(config(tmp_path, ID)).config == older.config
    assert newest.config.model.revision == SECOND
    assert older.config.model.revision == FIRST
    assert newest.found.sha256 != older.found.sha256


def test_what_is_broken_is_refused_before_it_runs(tmp_path: Path):
    with pytest.raises(ExportError, match=r"model.py:26: residual_0_output is used .* before line 27"):
        prepare(config(tmp_path, EXPORTS / "broken_undefined"))
    assert not (tmp_path / "run").exists()


def test_a_wrong_kind_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"is a model of kind builder: set model.kind=builder"):
        prepare(tiny_config(tmp_path / "run", "model.kind=hub", f"model.ref={DECODER}"))


def test_in_this_process_code_runs_by_consent_only(tmp_path: Path):
    sha256 = sha256_file(DECODER / "model.py")
    with pytest.raises(ValueError, match=rf"--inline runs .* without walls: .* --trust-sha256 {sha256}"):
        prepare_inline(config(tmp_path, DECODER))
    with pytest.raises(ValueError, match=rf"your consent is to .* sha256 {'0' * 64}, and this one has {sha256}"):
        prepare_inline(config(tmp_path, DECODER, f"model.trust_sha256={'0' * 64}"))
    prepare_inline(config(tmp_path, DECODER, f"model.trust_sha256={sha256}"))
    assert (tmp_path / "run" / "source" / "model.py").exists()


def test_code_that_was_changed_in_the_run_is_refused(tmp_path: Path):
    export = shutil.copytree(DECODER, tmp_path / "export")
    prepared = prepare(config(tmp_path, export))
    RunFolder(tmp_path / "run").create(prepared.config)
    place(prepared)
    (tmp_path / "run" / "source" / "model.py").write_text("pass\n")
    with pytest.raises(ValueError, match="is not as it was when this run began"):
        prepare(config(tmp_path, export))


def test_a_run_of_ours_is_a_model_to_start_from(tmp_path: Path):
    from utils.tests.tiny import weights_hash
    from utils.training.run import run_training

    run_training(tiny_config(tmp_path / "first", "train.max_steps=2"))
    words = ("model.kind=folder", f"model.ref={tmp_path / 'first'}", "train.max_steps=1", "train.learning_rate=1e-9",
             "train.min_lr=0", "train.warmup_steps=0")  # fmt: skip
    run_training(prepare_inline(tiny_config(tmp_path / "second", *words)))
    first, second = (tmp_path / name / "checkpoints" for name in ("first", "second"))
    assert weights_hash(tmp_path / "second")
    from safetensors.torch import load_file

    old = load_file(first / "step-0000000002" / "model.safetensors")
    new = load_file(second / "step-0000000001" / "model.safetensors")
    assert all((old[name] - new[name]).abs().max() < 1e-6 for name in old)
    assert '"kind": "gpt"' in (second / "step-0000000001" / "config.json").read_text()
    with pytest.raises(ValueError, match="was trained with another tokenizer"):
        run_training(prepare_inline(tiny_config(tmp_path / "third", *words, "data.tokenizer=char")))
