"""Anybody's model works as it is: what it takes, returns and allows is found, and what is broken is named."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from utils.models.adapter import AdaptedModel, adapt, load_export
from utils.models.findings import ExportError

EXPORTS = Path(__file__).parents[3] / "tests" / "exports"
V, C, BLOCK = 40, 16, 32
CONFIG = {"vocab_size": V, "d_model": C, "block_size": BLOCK}
SOUND = {  # task, vocabulary, inputs, takes a mask, output, logits
    "decoder": ("causal", 512, ["input_ids"], False, "tensor", 0),
    "encoder": ("masked", 600, ["input_0_tokens"], True, "tuple", 1),
    "encoder_decoder": ("seq2seq", 640, ["src", "tgt"], True, "tensor", 0),
    "moe": ("causal", 512, ["tokens"], False, "object", "logits"),
    "alibi_dict": ("causal", 700, ["input_ids"], True, "dict", "logits"),
    "rotary": ("causal", 800, ["idx"], False, "tuple", 0),
    "classifier": ("classification", 512, ["input_ids"], False, "tensor", 0),
}
BROKEN = {  # code, words, whether it is in a line of forward
    "broken_intermediates": ("forward-takes-intermediates", "forward requires mhsa_0_output, residual_0_output"),
    "broken_undefined": ("undefined-name", "model.py:26: forward raises UnboundLocalError.*residual_0_output"),
    "broken_no_head": ("no-output-head", r"hidden states \(2, 8, 32\)"),
    "broken_vocabulary": ("vocabulary-mismatch", "1000 tokens, but the embedding has 512 rows"),
}


class Plain(nn.Module):
    """A small causal model for variations; `forward` is what varies."""

    def __init__(self, rows: int = V, out: int = V, positions: int = BLOCK, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.table = nn.Embedding(rows, C)
        self.places = nn.Embedding(positions, C)
        self.mix = nn.Linear(C, 3 * C)
        self.head = nn.Linear(C, out)

    def hidden(self, ids, bias=None):
        x = self.table(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        q, k, v = self.mix(x).chunk(3, dim=-1)
        return x + F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=self.causal and bias is None)

    def forward(self, input_ids):
        return self.head(self.hidden(input_ids))


def varied(forward, **sizes) -> Plain:
    return type("Varied", (Plain,), {"forward": forward})(**sizes)


def codes(model: AdaptedModel) -> list[str]:
    return [finding.code for finding in model.findings]


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_export_is_understood(name: str) -> None:
    model = load_export(EXPORTS / name)
    facts = model.facts()
    assert (facts["task"], facts["vocab_size"], facts["inputs"], model.supports_attention_mask, facts["output"],
            facts["logits"]) == SOUND[name]  # fmt: skip
    assert facts["block_size"] == model.shape.block_size == 64
    assert facts["findings"] == []
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert json.loads(json.dumps(facts)) == facts
    assert model.training
    assert all(module.training for module in model.modules())

    ids, decoder = torch.randint(facts["vocab_size"], (3, 64)), None
    want = (3, 64, facts["vocab_size"])
    if model.task == "seq2seq":
        decoder, want = torch.randint(640, (3, 10)), (3, 10, 640)
    logits = model(ids, decoder)
    assert logits.shape == ((3, 3) if model.task == "classification" else want)
    logits.sum().backward()


def test_the_examples_are_all_here() -> None:
    folders = {path.name for path in EXPORTS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*SOUND, *BROKEN, "broken_no_mask"}
    readme = (EXPORTS / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in folders)
    assert all(f"`{code}`" in readme for code, _ in BROKEN.values())


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_export_is_diagnosed(name: str) -> None:
    code, words = BROKEN[name]
    with pytest.raises(ExportError, match=words) as caught:
        load_export(EXPORTS / name)
    (finding,) = caught.value.findings
    assert (finding.code, finding.file, finding.severity) == (code, "model.py", "fail")
    assert finding.line > 0
    assert finding.fix


def test_a_decoder_without_a_mask_stays_a_decoder_with_a_warning() -> None:
    model = load_export(EXPORTS / "broken_no_mask")
    assert model.task == "causal"
    assert codes(model) == ["looks-ahead"]
    assert "the names say so, but earlier logits see later tokens" in " ".join(model.notes)


def test_weights_follow_the_seed_and_the_random_state_stays() -> None:
    before = torch.get_rng_state()
    first, second, third = (load_export(EXPORTS / "moe", seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], third["head.weight"])


def test_saving_uses_the_models_own_names(tmp_path: Path) -> None:
    model, other = load_export(EXPORTS / "alibi_dict", 1), load_export(EXPORTS / "alibi_dict", 2)
    assert set(model.state_dict()) == set(model.inner.state_dict())
    save_model(model, str(tmp_path / "w.safetensors"))  # tied weights
    load_model(other, str(tmp_path / "w.safetensors"))
    ids = torch.randint(700, (2, 8))
    assert torch.equal(model.eval()(ids), other.eval()(ids))
    other.load_state_dict(model.state_dict())


def test_an_auxiliary_loss_has_a_gradient_and_does_not_stop_copying() -> None:
    model = load_export(EXPORTS / "moe")
    assert model.aux_loss is None
    model(torch.randint(512, (2, 8)))
    twin = copy.deepcopy(model)
    assert twin.aux_loss is None
    model.aux_loss.backward()
    assert model.inner.layers[0].moe.gate.weight.grad.abs().sum() > 0
    assert twin(torch.randint(512, (2, 8))).shape == (2, 8, 512)


@pytest.mark.parametrize("name", ["encoder", "alibi_dict"])
def test_padding_has_no_influence(name: str) -> None:
    model = load_export(EXPORTS / name).eval()
    ids, mask = torch.randint(500, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
    mask[1, 8:] = 0
    other = torch.where(mask == 0, 7, ids)
    with torch.no_grad():
        a, b, alone = model(ids, attention_mask=mask), model(other, attention_mask=mask), model(ids[1:, :8])
    assert torch.allclose(a[mask == 1], b[mask == 1], atol=1e-5)
    assert torch.allclose(a[1:, :8], alone, atol=1e-5)


def test_what_a_model_does_not_take_is_refused() -> None:
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="takes no padding mask"):
        load_export(EXPORTS / "decoder")(ids, attention_mask=ids)
    with pytest.raises(ValueError, match="takes no decoder_input_ids"):
        load_export(EXPORTS / "decoder")(ids, ids)
    with pytest.raises(ValueError, match="needs decoder_input_ids"):
        load_export(EXPORTS / "encoder_decoder")(ids)
    with pytest.raises(ValueError, match="task=chat is not known: choose one of causal, masked"):
        adapt(Plain(), CONFIG, "chat")


def hidden_first(self, idx):
    hidden = self.hidden(idx)
    return hidden, self.head(hidden)


def loss_first(self, x, labels=None):
    return torch.zeros(()), self.head(self.hidden(x)), [self.hidden(x)]


def named_aux(self, tokens):
    hidden = self.hidden(tokens)
    logits, router_loss = self.head(hidden), hidden.mean()
    return logits, router_loss


def dict_aux(self, input):
    logits = self.head(self.hidden(input))
    return {"loss": logits.sum(), "z_loss": [logits.mean(), logits.mean()], "output": logits, "aux_loss": logits.max()}


def keyword_only(self, *, input_ids, **kwargs):
    return self.head(self.hidden(input_ids))


def odd_name(self, sentence, /, x=None):
    return self.head(self.hidden(sentence))


def any_arguments(self, *args, **kwargs):
    return self.head(self.hidden(args[0]))


def required_extras(self, input_ids, token_type_ids, position_ids, attention_mask, labels):
    assert attention_mask is None
    assert labels is None
    return self.head(self.hidden(input_ids) + token_type_ids[..., None] + position_ids[..., None])


def needs_a_mask(self, input_ids, attention_mask):
    seen = (attention_mask != 0)[:, None, :] & torch.ones(input_ids.shape[1], input_ids.shape[1]).tril().bool()
    return self.head(self.hidden(input_ids, seen | torch.eye(input_ids.shape[1]).bool()))


@pytest.mark.parametrize(("forward", "inputs", "logits", "aux"), [
    (hidden_first, "idx", 1, []), (loss_first, "x", 1, []), (named_aux, "tokens", 0, [1]),
    (dict_aux, "input", "output", ["z_loss", "aux_loss"]), (keyword_only, "input_ids", 0, []),
    (odd_name, "sentence", 0, []), (any_arguments, "args", 0, []), (required_extras, "input_ids", 0, []),
    (needs_a_mask, "input_ids", 0, []),
])  # fmt: skip
def test_every_usual_way_to_be_called_and_to_answer(forward, inputs: str, logits: object, aux: list) -> None:
    model = adapt(varied(forward), CONFIG)
    facts = model.facts()
    assert (facts["inputs"], facts["logits"], facts["aux_losses"], facts["task"]) == ([inputs], logits, aux, "causal")
    assert model.shape.vocab_size == V
    assert model.supports_attention_mask == (forward is needs_a_mask)
    assert model(torch.randint(V, (2, 9))).shape == (2, 9, V)
    assert (model.aux_loss is None) == (aux == [])


def as_attention_bias(self, input_ids, attention_mask=None):
    bias = None if attention_mask is None else attention_mask.float()
    return self.head(self.hidden(input_ids, bias))


def test_a_mask_that_is_no_padding_mask_is_left_out() -> None:
    model = adapt(varied(as_attention_bias), CONFIG)
    assert not model.supports_attention_mask
    assert "attention_mask is left out" in " ".join(model.notes)


def test_the_task_is_what_the_model_computes() -> None:
    assert adapt(Plain(), {}).task == "causal"
    assert adapt(Plain(causal=False), CONFIG).task == "masked"
    for hint in ({"is_decoder": True}, {"model_type": "gpt2"}, {"architecture": "decoder-only"}):
        assert adapt(Plain(causal=False), CONFIG | hint).task == "causal"
    causal = adapt(Plain(), CONFIG | {"model_name": "a bert encoder"})
    assert causal.task == "causal"
    assert "although the names say masked" in " ".join(causal.notes)
    asleep = Plain()
    nn.init.zeros_(asleep.head.weight)
    assert "by the names alone" in " ".join(adapt(asleep, CONFIG).notes)
    assert adapt(asleep, CONFIG | {"task": "masked_lm"}).task == "masked"


def test_dropout_that_ignores_eval_mode_does_not_look_like_a_missing_mask() -> None:
    model = varied(lambda self, input_ids: self.head(F.dropout(self.hidden(input_ids), 0.5)))
    assert adapt(model, CONFIG).task == "causal"


def test_the_vocabulary_is_what_can_be_read_and_predicted() -> None:
    padded = adapt(Plain(rows=48, out=48), CONFIG)
    assert padded.shape.vocab_size == 48
    assert "padded" in " ".join(padded.notes)
    wider = adapt(Plain(rows=40, out=48), CONFIG)
    assert codes(wider) == ["vocabulary-mismatch"]
    assert wider(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 40)
    assert adapt(Plain(), {}).shape.vocab_size == V
    for sizes in ({"rows": 30}, {"out": 30}, {"rows": 30, "out": 30}):
        with pytest.raises(ExportError, match="config.json says 40 tokens, but") as caught:
            adapt(Plain(**sizes), CONFIG)
        assert caught.value.findings[-1].code == "vocabulary-mismatch"


def test_a_table_that_is_a_bare_parameter_is_found() -> None:
    model = varied(lambda self, ids: self.head(self.hidden(ids) + self.wte[ids]), rows=50, out=50)
    model.wte = nn.Parameter(torch.randn(45, C))
    assert adapt(model, {}).shape.vocab_size == 45


def test_the_longest_input_is_tried() -> None:
    assert adapt(Plain(), CONFIG).shape.block_size == BLOCK
    assert adapt(Plain(), {}).shape.block_size == BLOCK
    assert adapt(Plain(positions=300), {"max_seq_len": 200}).shape.block_size == 200
    short = adapt(Plain(), {"seq_length": 50})
    assert short.shape.block_size == BLOCK
    assert codes(short) == ["positions-stop-short"]
    assert "promises 50 tokens, but it fails beyond 32" in str(short.findings[0])
    assert adapt(Plain(positions=5), {"block_size": 20}).shape.block_size == 5

    unlimited = varied(lambda self, ids: self.head(self.table(ids).cumsum(1)))
    assert adapt(unlimited, {}).shape.block_size == 1024
    assert adapt(unlimited, {"n_ctx": 5000}).shape.block_size == 5000


def test_a_limit_that_only_an_assertion_knows_is_found() -> None:
    def forward(self, ids):
        assert ids.shape[1] <= 21
        return self.head(self.table(ids).cumsum(1))

    assert adapt(varied(forward), {}).shape.block_size == 21


def unknown_argument(self, input_ids, temperature):
    return self.head(self.hidden(input_ids))


def last_position(self, input_ids):
    return self.head(self.hidden(input_ids)[:, -1])


def swapped(self, input_ids):
    return self.head(self.hidden(input_ids)).transpose(0, 1)


def no_scores(self, input_ids):
    return {"text": "hello"}


def needs_labels(self, input_ids, labels):
    return labels["next"], self.head(self.hidden(input_ids))


def hidden_states_only(self, hidden_states):
    return self.head(hidden_states)


@pytest.mark.parametrize(("forward", "code", "words"), [
    (unknown_argument, "forward-arguments", "forward requires temperature"),
    (swapped, "output-shape", r"returns \(8, 2, 40\), expected \(2, 8, V\)"),
    (no_scores, "no-logits", "returns a dict in which nothing is a score"),
    (needs_labels, "forward-arguments", "requires labels and fails with None"),
    (hidden_states_only, "forward-takes-intermediates", "forward requires hidden_states"),
    (lambda self: None, "forward-arguments", "takes no token ids"),
    (lambda self, ids: self.nowhere(ids), "forward-fails", "no attribute 'nowhere'"),
])  # fmt: skip
def test_a_forward_that_cannot_be_used_is_named(forward, code: str, words: str) -> None:
    with pytest.raises(ExportError, match=words) as caught:
        adapt(varied(forward), CONFIG)
    assert [finding.code for finding in caught.value.findings] == [code]


def test_a_model_that_scores_only_the_last_position_is_warned_about() -> None:
    model = adapt(varied(last_position), CONFIG)
    assert model.task == "causal"
    assert codes(model) == ["scores-one-position"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_and_is_probed_all_the_same(dtype: torch.dtype) -> None:
    model = adapt(Plain().to(dtype), CONFIG)
    assert (model.task, model.shape.block_size) == ("causal", BLOCK)
    assert model(torch.randint(V, (2, 9))).dtype == dtype

    insists = Plain().to(dtype)
    insists.forward = lambda input_ids: insists.head(insists.hidden(input_ids).to(dtype))
    assert adapt(insists, CONFIG).task == "causal"


def test_a_model_that_cannot_be_copied_is_probed_in_place() -> None:
    model = Plain()
    model.seen = model.head.weight * 2  # torch copies no tensor that hangs on a graph
    assert adapt(model, CONFIG).task == "causal"
    assert all(module.training for module in model.modules())


SIZE = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 90,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
TINY = [
    (GPT2LMHeadModel, GPT2Config(vocab_size=90, n_positions=48, n_embd=32, n_layer=2, n_head=4, bos_token_id=1,
                                 eos_token_id=2), "causal", 48),
    (LlamaForCausalLM, LlamaConfig(**SIZE, max_position_embeddings=100), "causal", 100),
    (MistralForCausalLM, MistralConfig(**SIZE, num_key_value_heads=2, max_position_embeddings=100), "causal", 100),
    (BertForMaskedLM, BertConfig(**SIZE, max_position_embeddings=48), "masked", 48),
    (BertForSequenceClassification, BertConfig(**SIZE, max_position_embeddings=48), "classification", 48),
    (T5ForConditionalGeneration, T5Config(vocab_size=90, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
     "seq2seq", 1024),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "config", "task", "block"), TINY, ids=[kind.__name__ for kind, *_ in TINY])
def test_transformers_models_work_as_they_are(kind: type, config, task: str, block: int) -> None:
    inner = kind(config)
    model = adapt(inner, config.to_dict()).eval()
    assert (model.task, model.shape.vocab_size, model.shape.block_size) == (task, 90, block)
    assert model.supports_attention_mask
    assert model.findings == ()
    ids = torch.randint(3, 90, (2, 10))
    more = {"decoder_input_ids": ids[:, :4]} if task == "seq2seq" else {}
    with torch.no_grad():
        assert torch.equal(model(ids, **more), inner(input_ids=ids, **more).logits)
