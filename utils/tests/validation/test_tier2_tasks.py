"""Tier 2 asks every kind of model what it can answer: decoders, encoders, encoder-decoders and classifiers."""

import pytest
import torch
import transformers
from torch import nn

from utils.validation.figures import check_figure
from utils.validation.run import run_checks
from utils.validation.tier2 import CHECKS

V, BLOCK = 96, 40
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


class Logits(nn.Module):
    """The call of this house around a model of transformers."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, ids, target=None):
        more = {} if target is None else {"decoder_input_ids": target}
        return self.inner(input_ids=ids, use_cache=False, **more).logits if more else self.inner(input_ids=ids).logits


def gpt2():
    config = transformers.GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=BLOCK, vocab_size=V,
                                     bos_token_id=0, eos_token_id=0)  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(**more):
    sizes = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": BLOCK}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=V, **sizes, **more))


def bert(kind):
    return kind(transformers.BertConfig(vocab_size=V, max_position_embeddings=BLOCK, num_labels=3, **SIZES))


def t5():
    config = transformers.T5Config(vocab_size=V, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return transformers.T5ForConditionalGeneration(config)


MODELS = {
    "gpt2": ("causal", gpt2, 8),
    "llama": ("causal", llama, 8),
    "llama, attention by hand": ("causal", lambda: llama(attn_implementation="eager"), 8),
    "bert": ("masked", lambda: bert(transformers.BertForMaskedLM), 8),
    "t5": ("seq2seq", t5, 24),  # of the encoder, of the decoder, and across
    "classifier": ("classification", lambda: bert(transformers.BertForSequenceClassification), 8),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_view_answers(name):
    task, build, heads = MODELS[name]
    torch.manual_seed(0)
    model = Logits(build()).eval()
    found = {check.name: check for check in run_checks(model, CHECKS, vocab_size=V, block_size=BLOCK, task=task)}
    skipped = {"copying"} if task in ("masked", "classification") else set()
    assert {check.name for check in found.values() if check.status != "pass"} == skipped, found
    assert set(CHECKS) - set(found) == {"BDH neurons"}
    assert found["attention"].values["heads"] == heads
    assert found["logit lens"].values["agreement"][-1] == 1
    assert found["attribution"].values["gap"] < 0.01
    for check in found.values():
        assert check.figure is None or check_figure(check.figure)


def test_both_implementations_of_one_attention_show_the_same_maps():
    torch.manual_seed(0)
    fast = llama()
    by_hand = llama(attn_implementation="eager")
    by_hand.load_state_dict(fast.state_dict())
    maps = []
    for model in (fast, by_hand):
        checks = run_checks(Logits(model), CHECKS, vocab_size=V, block_size=BLOCK, only=["attention"])
        maps.append(torch.tensor([panel["rows"] for panel in next(iter(checks)).figure["panels"]]))
    assert torch.allclose(maps[0], maps[1], atol=2e-3)
