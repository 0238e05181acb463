"""What a model from elsewhere says of itself beside its limits: its number of classes, how its decoder begins."""

import json

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from utils.models.adapter import adapt, start_id_in
from utils.models.hub_model import load_hub_folder

SMALL = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32}  # fmt: skip
BART = BartConfig(vocab_size=60, decoder_start_token_id=7, pad_token_id=1, bos_token_id=0, eos_token_id=2, **SMALL)
T5 = T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=3)
BERT = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 32}  # fmt: skip


@pytest.mark.parametrize(("kind", "config", "start"), [
    (BartForConditionalGeneration, BART, 7), (T5ForConditionalGeneration, T5, 3),
    (GPT2LMHeadModel, GPT2Config(vocab_size=60, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0,
                                 eos_token_id=0, decoder_start_token_id=5), None),
])  # fmt: skip
def test_a_decoder_begins_as_its_config_says(kind: type, config, start: int | None, tmp_path) -> None:
    model = adapt(kind(config), config.to_dict())
    assert model.start_id == start  # only where there is a decoder that begins by itself
    assert model.facts()["start_id"] == start
    model.inner.save_pretrained(tmp_path)
    assert load_hub_folder(tmp_path).start_id == start


@pytest.mark.parametrize("classes", [2, 5])
def test_a_classifier_knows_its_classes(classes: int) -> None:
    config = BertConfig(**BERT, num_labels=classes)
    model = adapt(BertForSequenceClassification(config), config.to_dict())
    assert (model.task, model.n_classes, model.start_id) == ("classification", classes, None)
    assert json.loads(json.dumps(model.facts()))["n_classes"] == classes
    assert model(torch.randint(60, (3, 8))).shape == (3, classes)


def test_another_task_has_no_classes() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 30)

        def forward(self, idx):
            return self.head(self.table(idx).cumsum(1))

    model = adapt(Plain(), {"vocab_size": 30})
    assert (model.task, model.n_classes, model.start_id, model.packs_documents) == ("causal", 0, None, False)


@pytest.mark.parametrize("value", [None, True, -1, 60, "7", 7.0])
def test_a_start_that_is_no_token_is_none(value) -> None:
    assert start_id_in({"decoder_start_token_id": value}, 60) is None
    assert start_id_in({"decoder_start_token_id": 59}, 60) == 59
