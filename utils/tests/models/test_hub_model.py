"""A transformers folder becomes an adapted model, from its weights or from a seed, and never runs code of its own."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from utils.models.hub_model import load_hub_folder

SIZE = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32, "vocab_size": 70,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 40}  # fmt: skip
FAMILIES = [
    (LlamaForCausalLM, LlamaConfig(**SIZE), "causal"),
    (BertForMaskedLM, BertConfig(**SIZE), "masked"),
    (BertForSequenceClassification, BertConfig(**SIZE, num_labels=3), "classification"),
    (T5ForConditionalGeneration, T5Config(vocab_size=70, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
     "seq2seq"),
    (GPT2LMHeadModel, GPT2Config(vocab_size=70, n_positions=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=1,
                                 eos_token_id=2), "causal"),
]  # fmt: skip


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    LlamaForCausalLM(LlamaConfig(**SIZE)).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(("kind", "config", "task"), FAMILIES, ids=[kind.__name__ for kind, *_ in FAMILIES])
def test_a_pretrained_folder_computes_what_it_did(tmp_path: Path, kind: type, config, task: str) -> None:
    theirs = kind(config).eval()
    theirs.save_pretrained(tmp_path)
    model = load_hub_folder(tmp_path)
    assert (type(model.inner), model.task, model.shape.vocab_size) == (kind, task, 70)
    assert model.training
    ids = torch.randint(3, 70, (2, 8))
    more = {"decoder_input_ids": ids[:, :3]} if task == "seq2seq" else {}
    with torch.no_grad():
        assert torch.equal(model.eval()(ids, **more), theirs(input_ids=ids, **more).logits)


def test_random_weights_follow_the_seed_and_need_no_file(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    before = torch.get_rng_state()
    first, second, third = (load_hub_folder(llama, seed, pretrained=False).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], third["lm_head.weight"])
    with pytest.raises(ValueError, match=r"has no \*\.safetensors: only that format is read"):
        load_hub_folder(llama)


def test_half_precision_weights_are_read_as_fp32(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZE)).bfloat16().save_pretrained(tmp_path)
    model = load_hub_folder(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_config_that_asks_for_code_is_refused(llama: Path) -> None:
    rewrite(llama, auto_map={"AutoModelForCausalLM": "modeling.Own"})
    (llama / "modeling.py").write_text("raise SystemExit('ran')\n")
    for pretrained in (True, False):
        with pytest.raises(ValueError, match="asks for code of its own .*AutoModelForCausalLM.*never run"):
            load_hub_folder(llama, pretrained=pretrained)


@pytest.mark.parametrize(("changes", "words"), [
    ({"architectures": ["ViTModel"]}, r"architectures \['ViTModel'\], but only those that end in ForSequence"),
    ({"architectures": None}, r"architectures \[\]"),
    ({"model_type": "no-such-model"}, "transformers cannot build it: .*no-such-model"),
    ({"hidden_size": 32}, "transformers cannot build it"),
])  # fmt: skip
def test_a_config_that_does_not_fit_is_one_clear_error(llama: Path, changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_hub_folder(rewrite(llama, **changes))


def test_missing_and_damaged_files_are_named(llama: Path, tmp_path: Path) -> None:
    (llama / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="transformers cannot build it"):
        load_hub_folder(llama)
    (llama / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_hub_folder(llama)
    (llama / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        load_hub_folder(llama)
    with pytest.raises(ValueError, match="config.json is missing"):
        load_hub_folder(tmp_path / "nowhere")


def test_without_transformers_the_error_is_the_pip_line(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ValueError, match="pip install transformers"):
        load_hub_folder(llama)
