"""Every setting is read by code, and changing it changes something that can be seen."""

import ast
import json
from pathlib import Path

import pytest
import torch

from utils.config.load import load_config
from utils.config.schema import field_table
from utils.jobs.launch import prepare_inline
from utils.runs.folder import RunFolder
from utils.runtime.files import sha256_file
from utils.tests.tiny import metrics_of, samples_of, tiny_config, weights_hash
from utils.training.run import run_training

UTILS = Path(__file__).parents[2]
KEYS = [row[0] for row in field_table()]

BOOK = ("data.source=text", "data.path={book}")
ROWS = ("data.source=jsonl", "data.path={rows}")
CHATS = ("data.source=jsonl", "data.path={chats}")
ENCODER = ("model.kind=builder", "model.ref={encoder}", "model.trust_sha256={encoder_sha}")

# For each setting: another value, with what it needs beside it. What is compared is in `seen`.
CHANGES = {
    "model.kind": ["llama"],
    "model.ref": ["{second}", "model.kind=folder"],
    "model.revision": None,  # utils/tests/jobs/test_prepare.py: another commit, another model
    "model.pretrained": ["false", "model.kind=folder", "model.ref={first}"],
    "model.trust_sha256": None,  # utils/tests/jobs/test_prepare.py: without it the code does not run unboxed
    "model.shape.n_layer": ["2"],
    "model.shape.n_head": ["4"],
    "model.shape.n_kv_head": ["1", "model.kind=llama"],
    "model.shape.n_embd": ["32"],
    "model.shape.n_hidden": ["24"],
    "model.shape.block_size": ["32"],
    "model.shape.vocab_size": ["300"],
    "model.shape.pad_vocab_to": ["100"],
    "model.shape.dropout": ["0.4"],
    "model.shape.tie_embeddings": ["false"],
    "model.shape.activation": ["relu2"],
    "model.shape.qk_norm": ["true"],
    "model.shape.value_residual": ["true", "model.shape.n_layer=2"],
    "model.shape.zero_init": ["true"],
    "data.source": ["text", "data.path={book}"],
    "data.path": ["{other}", "data.source=text"],
    "data.name": None,  # utils/tests/data/test_hub_source.py, like the other settings of the Hub
    "data.config": None,
    "data.revision": None,
    "data.split": None,
    "data.streaming": None,
    "data.document": ["line", *BOOK],
    "data.text_field": ["other", *ROWS],
    "data.target_field": ["other", *ROWS, "data.text_field=text"],
    "data.label_field": None,  # utils/tests/training/test_classification.py: without it there is nothing to learn
    "data.mixture": ["[{{source: text, path: {book}}}, {{source: jsonl, path: {rows}, text_field: text}}]"],
    "data.size": ["30000"],
    "data.seed": ["1"],
    "data.max_documents": ["20", *BOOK, "data.document=line"],
    "data.shuffle_buffer": None,  # utils/tests/data/test_hub_source.py
    "data.hook": ["{hook}:shout", *BOOK],
    "data.on_bad_row": None,  # utils/tests/data/test_tables.py
    "data.val_from": ["{other}", *BOOK, "data.document=line"],
    "data.test_from": None,  # utils/tests/cli/test_evaluate.py: nothing else reads the test part
    "data.val_fraction": ["0.2"],
    "data.test_fraction": ["0.3", *BOOK, "data.document=line"],
    "data.split_by": ["position", *BOOK, "data.document=line"],
    "data.duplicates": ["drop", *BOOK, "data.document=line"],
    "data.task": None,  # utils/tests/training/test_tasks.py: what a model is not made for is refused
    "data.mask_fraction": ["0.5", *ENCODER],
    "data.whole_words": ["false", *ENCODER, "data.tokenizer=bpe", "data.vocab_size=300"],
    "data.packing": ["documents", *BOOK, "data.document=line"],
    "data.curriculum": ["length", *BOOK, "data.document=line", "data.packing=documents"],
    "data.tokenizer": ["char"],
    "data.tokenizer_revision": None,  # utils/tests/data/test_pretrained_tokenizer.py
    "data.vocab_size": ["300", "data.tokenizer=bpe"],
    "data.chat_template": ["{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}", *CHATS],
    "data.separator": ["nothing", *BOOK, "data.document=line"],
    "data.seq_len": ["8"],
    "train.max_steps": ["9"],
    "train.epochs": ["0.07", "train.max_steps=0"],
    "train.batch_size": ["3"],
    "train.grad_accum_steps": ["1"],
    "train.batch_warmup_steps": ["6"],
    "train.optimizer": ["adamw"],
    "train.muon_momentum": ["0.5", "train.optimizer=muon"],
    "train.learning_rate": ["1e-2"],
    "train.min_lr": ["1e-3"],
    "train.warmup_steps": ["5"],
    "train.schedule": ["linear"],
    "train.decay_share": ["0.9", "train.schedule=wsd"],
    "train.weight_decay": ["0.5"],
    "train.beta1": ["0.5"],
    "train.beta2": ["0.5"],
    "train.grad_clip": ["0.01"],
    "train.label_smoothing": ["0.2"],
    "train.z_loss": ["0.1"],
    "train.ema_decay": ["0.5"],
    "train.precision": ["bf16"],
    "train.compile": None,  # utils/tests/training/test_compiled.py: it takes a minute
    "train.activation_checkpointing": None,  # utils/tests/models/test_checkpointing.py: same result, less memory
    "train.memory_limit_gb": None,  # utils/tests/training/test_memory.py
    "train.device": None,  # below: there is only one here
    "train.threads": ["2", "train.max_steps=2", "train.sample_every=0"],  # two threads are slow on a busy machine
    "train.eval_every": ["3"],
    "train.eval_batches": ["1"],
    "train.save_every": ["5"],
    "train.log_every": ["2"],
    "train.sample_every": ["4"],
    "train.sample_prompt": ["A"],
    "train.sample_tokens": ["9"],
    "train.patience": ["1", "train.learning_rate=0.5", "train.min_lr=0.5", "train.eval_every=1"],
    "train.spike": None,  # utils/tests/training/test_guard.py, like the next
    "train.max_rollbacks": None,
    "train.stats_every": ["3"],
    "train.answers_every_eval": None,  # utils/tests/training/test_answers.py: for seq2seq models
    "train.profile": ["2"],
    "train.seed": ["2"],
    "train.deterministic": ["true"],
    "checkpoint.keep_last": ["5"],
    "checkpoint.keep_best": ["false"],
    "run_dir": None,  # every test here gives another
}


def test_every_setting_is_in_the_table():
    assert list(CHANGES) == KEYS


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_is_read_by_code_outside_the_schema(key: str):
    name = key.rpartition(".")[2]
    for path in UTILS.rglob("*.py"):
        if {"config", "tests"} & set(path.relative_to(UTILS).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == name:
                return
    pytest.fail(f"nothing reads {key}")


def seen(run: Path) -> dict:
    """What a person could see of a run's settings, config.yaml aside."""
    folder = RunFolder(run)
    meta = folder.read_json("meta")
    return {
        "weights": weights_hash(run),
        "metrics": metrics_of(run),
        "samples": samples_of(run),
        "steps": folder.state()["step"],
        "profiled": [event["step"] for event in folder.events("profiled")],
        "layers": len(folder.layers()),
        "saved": [event["step"] for event in folder.events("saved")],
        "kept": sorted(path.name for path in folder.checkpoints.iterdir()),
        "threads": meta["made_with"]["threads"],  # what torch says it uses
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(scope="module")
def books(tmp_path_factory) -> dict[str, Path]:
    """Two books of 300 lines, of which some are alike; rows of two columns; chats; a hook."""
    folder = tmp_path_factory.mktemp("books")
    for name, animal in (("book", "cat"), ("other", "dog")):
        lines = [f"the {animal} sat on mat {i % 250} and thought of {i % 250 * 7} fish\n" for i in range(300)]
        (folder / name).write_text("".join(lines))
    turns = [[f"How many fish has cat {i}?", f"It has {i * 7} fish."] for i in range(60)]
    rows = [{"text": asked, "other": answer} for asked, answer in turns]
    roles = ("user", "assistant")
    chats = [{"messages": [{"role": r, "content": c} for r, c in zip(roles, turn, strict=True)]} for turn in turns]
    for name, records in (("rows", rows), ("chats", chats)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "hook.py").write_text("def shout(document):\n    return document | {'text': document['text'].upper()}\n")
    return {"hook": folder / "hook.py", **{name: folder / name for name in ("book", "other", "rows", "chats")}}


@pytest.fixture(scope="module")
def places(tmp_path_factory, books) -> dict[str, object]:
    """Books, two trained runs, and an export that is trained to find hidden tokens."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("first", 1), ("second", 2)):
        run_training(tiny_config(folder / name, "train.max_steps=2", f"train.seed={seed}"))
    encoder = Path(__file__).parents[3] / "tests" / "exports" / "encoder"
    runs = {name: folder / name for name in ("first", "second")}
    return {**books, **runs, "encoder": encoder, "encoder_sha": sha256_file(encoder / "model.py")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, places):
    """Runs by their overrides, each trained once."""
    done: dict[tuple[str, ...], dict] = {}

    def train(*overrides: str) -> dict:
        words = tuple(sorted(word.format(**places) for word in overrides))
        if words not in done:
            run = tmp_path_factory.mktemp("run") / "run"
            run_training(prepare_inline(tiny_config(run, *words)))
            done[words] = seen(run)
            torch.use_deterministic_algorithms(False)
        return done[words]

    return train


@pytest.mark.parametrize("key", [key for key in KEYS if CHANGES[key]])
def test_changing_a_setting_changes_what_can_be_seen(key: str, runs):
    value, *beside = CHANGES[key]
    if key == "data.path":
        base = runs(*beside, "data.path={book}")
    elif key == "model.ref":
        base = runs(*beside, "model.ref={first}")
    elif key == "data.source":
        base, beside = runs(), [*beside]
    else:
        base = runs(*beside) if key not in ("train.epochs",) else runs()
    assert runs(*beside, f"{key}={value}") != base


def test_device_is_obeyed(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: cuda is no error")
    with pytest.raises(ValueError, match=r"train.device=cuda is not available here \(available: cpu"):
        run_training(tiny_config(tmp_path / "run", "train.device=cuda"))
    assert not (tmp_path / "run").exists()


def test_run_dir_is_where_the_run_goes(tmp_path: Path):
    run_training(tiny_config(tmp_path / "elsewhere"))
    assert RunFolder(tmp_path / "elsewhere").exists()
    assert load_config("debug").run_dir.startswith("runs/debug-")
