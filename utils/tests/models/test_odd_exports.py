"""The many voices in which people write a model.py: sound ones come out sound, broken ones are told what to do."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch

from utils.models.adapter import AdaptedModel, load_export
from utils.models.diagnose import diagnose
from utils.models.findings import ExportError

V, T = 50, 24
CONFIG = {"vocab_size": V, "d_model": 16, "block_size": T}
START = """import torch
import torch.nn as nn
import torch.nn.functional as F


class Mix(nn.Module):
    def __init__(self, d, causal=True):
        super().__init__()
        self.qkv, self.causal = nn.Linear(d, 3 * d), causal

    def forward(self, x, mask=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal and mask is None)
"""
MODEL = (
    START
    + """
{before}
class Model({base}):
    def __init__(self, {takes}):
        {first}
        super().__init__()
        self.emb, self.pos = nn.Embedding(vocab_size, d_model), nn.Embedding(block_size, d_model)
        self.mix, self.head = Mix(d_model, {causal}), nn.Linear(d_model, vocab_size)
        {more}

    def hidden(self, ids, mask=None):
        return self.mix(self.emb(ids) + self.pos.weight[: ids.shape[1]], mask)

    def forward(self, {inputs}):
        {body}

{after}
"""
)
USUAL = {
    "before": "", "base": "nn.Module", "takes": "vocab_size, d_model, block_size", "first": "", "causal": True,
    "more": "", "inputs": "x", "body": "return self.head(self.hidden(x))", "after": "",
}  # fmt: skip
FROM_SETTINGS = "vocab_size, d_model, block_size = {0}.vocab_size, {0}.d_model, {0}.block_size"


def written(folder: Path, config: dict | None = None, code: str = "", **parts) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config), encoding="utf-8")
    (folder / "model.py").write_text(code or MODEL.format(**{**USUAL, **parts}), encoding="utf-8")
    return folder


def check(model: AdaptedModel, task: str = "causal") -> None:
    """It runs, in training and after, learns from its logits, and mixes neither texts nor, if causal, time."""
    assert (model.task, model.shape.vocab_size, model.shape.block_size) == (task, V, T)
    assert not model.findings
    ids = torch.randint(1, V, (3, 9), generator=torch.Generator().manual_seed(0))
    give = (lambda x: model(x, x)) if task == "seq2seq" else model
    model.train()
    logits = give(ids)
    assert logits.shape == (3, 9, V)
    logits.logsumexp(-1).sum().backward()
    model.eval()
    other = ids.clone()
    other[0, 6:] = 1
    before, after = give(ids), give(other)
    torch.testing.assert_close(before[1:], after[1:])
    if task == "causal":
        torch.testing.assert_close(before[0, :6], after[0, :6])


SOUND = {
    "BOM, tabs, CRLF": {"code": "\ufeff" + MODEL.format(**USUAL).replace("    ", "\t").replace("\n", "\r\n")},
    "settings under model_args": {"config": {"model_args": CONFIG, "version": 1}},
    "named nodes": {"config": {"nodes": {"in": {"type": "embedding", "config": CONFIG}}, "edges": []}},
    "settings of any name": {"takes": "opt", "first": FROM_SETTINGS.format("opt")},
    "settings class": {
        "before": "class Spec:\n    def __init__(self, vocab_size, d_model, block_size):\n"
                  "        self.vocab_size, self.d_model, self.block_size = vocab_size, d_model, block_size\n",
        "takes": "spec: Spec", "first": FROM_SETTINGS.format("spec") + "; assert type(spec) is Spec",
    },
    "a class of attributes": {
        "before": "class Hyper:\n    vocab_size = 9\n    d_model = 8\n    block_size = 7\n",
        "takes": "h: Hyper", "first": FROM_SETTINGS.format("h"),
    },
    "nested settings": {
        "config": {"sizes": {"d_model": 16, "block_size": T}, "vocab_size": V}, "takes": "config",
        "first": "vocab_size, d_model = config.vocab_size, config.sizes.d_model; block_size = config.sizes['n_ctx']",
    },
    "nested dataclasses": {
        "before": "from dataclasses import dataclass\n@dataclass\nclass Size:\n    d_model: int\n    block_size: int\n"
                  "@dataclass\nclass Config:\n    vocab_size: int\n    size: Size\n",
        "config": {"size": {"d_model": 16, "block_size": T}, "vocab_size": V}, "takes": "config: Config",
        "first": "vocab_size, d_model, block_size = config.vocab_size, config.size.d_model, config.size.block_size",
    },
    "everything handed through": {
        "config": {**CONFIG, "version": "1", "edges": []},
        "after": "def build_model(**config):\n    return Model(**config)\n",
    },
    "places only": {"takes": "vocab_size, d_model, /, block_size"},
    "a device": {"takes": "vocab_size, d_model, block_size, device", "first": "assert device == 'cpu'"},
    "kwargs for its base": {
        "after": "class Mine(Model):\n    def __init__(self, scale=1.0, **others):\n"
                 "        super().__init__(**others)\n",
        "config": {**CONFIG, "author": "me"},
    },
    "a factory": {
        "takes": "table, vocab_size, d_model, block_size",
        "after": "def create_model(config):\n"
                 "    return Model(None, config['vocab_size'], config['d_model'], config['block_size'])\n",
    },
    "a leftover class": {
        "before": "class Old(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
                  "        self.t = nn.Embedding(3, 3)\n",
    },
    "start_pos": {"inputs": "tokens, start_pos: int", "body": "return self.head(self.hidden(tokens))[:, start_pos:]"},
    "a state": {"inputs": "x, hidden", "body": "return self.head(self.hidden(x)), hidden"},
    "labels": {"inputs": "x, labels", "body": "return {'n': labels.shape, 'logits': self.head(self.hidden(x))}"},
    "a dict": {"inputs": "batch", "body": "return self.head(self.hidden(batch['input_ids']))"},
    "kwargs": {"inputs": "**given", "body": "return self.head(self.hidden(given['tokens']))"},
    "vocabulary before positions": {"body": "return self.head(self.hidden(x)).transpose(1, 2)"},
    "one row per token": {"body": "return self.head(self.hidden(x)).view(-1, 50)"},
    "positions before texts": {"body": "return self.head(self.hidden(x.t()).transpose(0, 1))"},
    "more in training": {"body": "y = self.head(self.hidden(x)); return (y, y.mean()) if self.training else y"},
    "a lazy layer": {"more": "self.head = nn.LazyLinear(vocab_size)"},
    "a late layer": {
        "more": "self.head = None",
        "body": "self.head = self.head or nn.Linear(self.mix.qkv.in_features, 50)\n"
                "        return self.head(self.hidden(x))",
    },
    "global switches": {
        "before": "torch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\ntorch.set_num_threads(1)\n",
    },
    "a causal mask from outside": {
        "base": "nn.Module", "causal": False, "inputs": "x, mask=None",
        "body": "return self.head(self.hidden(x, mask))", "config": {**CONFIG, "model_type": "gpt"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_model_needs_no_editing(name: str, tmp_path: Path) -> None:
    check(load_export(written(tmp_path, **SOUND[name])))


def test_a_decoder_gets_the_causal_mask_it_asks_for(tmp_path: Path) -> None:
    body = "return self.head(self.hidden(tgt, tgt_mask) + self.emb(src).mean(1, keepdim=True))"
    model = load_export(written(tmp_path, causal=False, inputs="src, tgt, src_mask, tgt_mask", body=body))
    check(model, "seq2seq")
    assert "forward gets a causal mask as tgt_mask (True = seen)" in model.notes


def test_additive_masks_are_understood(tmp_path: Path) -> None:
    body = "assert attention_mask.dim() == 4\n        return self.head(self.hidden(x, attention_mask[:, 0]))"
    model = load_export(written(tmp_path, causal=False, inputs="x, attention_mask", body=body))
    check(model, "masked")
    assert model.supports_attention_mask


def test_late_weights_follow_the_seed(tmp_path: Path) -> None:
    folder = written(tmp_path, **SOUND["a lazy layer"])
    heads = [load_export(folder, seed).state_dict()["head.weight"] for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("body", [
    "y = self.hidden(x); self.aux_loss = y.pow(2).mean(); return self.head(y)",
    "y = self.hidden(x); self.mix.router_loss = y.pow(2).mean(); return self.head(y)",
    "y = self.hidden(x); return {'logits': self.head(y), 'load_balance_loss': y.pow(2).mean()}",
    "y = self.hidden(x); return {'logits': self.head(y), 'losses': {'balance': y.pow(2).mean()}}",
])  # fmt: skip
def test_auxiliary_losses_are_found_wherever_they_are(body: str, tmp_path: Path) -> None:
    model = load_export(written(tmp_path, body=body)).train()
    model(torch.ones(2, 5, dtype=torch.long))
    assert model.aux_loss is not None
    assert model.aux_loss.requires_grad
    copy.deepcopy(model)


BROKEN = {  # parts, the finding's code, words, words of the fix
    "ids": ({"body": "return self.head(self.hidden(x)).argmax(-1)"}, "no-logits", r"int64 values \(2, 8\)", "logits"),
    "one row": ({"body": "return self.head(self.hidden(x)).flatten(1)"}, "output-shape", r"\(2, 400\)", "positions"),
    "loss": ({"body": "return self.head(self.hidden(x)).mean()"}, "no-logits", "one number, perhaps a loss", "logits"),
    "loss in training": ({"body": "y = self.head(self.hidden(x)); return y.mean() if self.training else y"},
                         "training-fails", "in training, forward returns no logits", "same in training"),
    "file of their own": ({"before": "from utils import make_mask\n"}, "missing-package", "from utils import make_mask",
                          "copy what it imports into model.py"),
    "relative": ({"before": "from .layers import Block\n"}, "missing-package", "another file", "into model.py"),
    "reads a file": ({"before": "text = open('input.txt').read()\n"}, "import-fails", "input.txt", "__main__"),
    "meta": ({"after": "def build_model():\n    with torch.device('meta'):\n        return Model(5, 4, 3)\n"},
             "constructor-fails", "meta device", r"without torch.device\('meta'\)"),
    "numbers in quotes": ({"config": {**CONFIG, "d_model": "16"}}, "constructor-fails", "TypeError",
                          "write d_model in config.json as numbers, without quotes"),
    "swapped sizes": ({"more": "self.head = nn.Linear(vocab_size, d_model)"}, "forward-fails", "mat1 and mat2",
                      "takes 50 wide values and gets 16"),
    "cuda": ({"body": "return self.head(self.hidden(x.cuda()))"}, "forward-fails", "forward raises",
             "leave out .cuda()"),
    "tags": ({"config": {**CONFIG, "num_labels": 7}, "more": "self.head = nn.Linear(d_model, 7)"}, "task-unsupported",
             "one of 7 classes", "vocab_size"),
    "no class": ({"code": START.split("class")[0] + "net = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50))"},
                 "class-missing", "no nn.Module class", r"return net from a function build_model\(\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_told_what_to_do(name: str, tmp_path: Path) -> None:
    parts, code, words, fix = BROKEN[name]
    if name == "cuda" and torch.cuda.is_available():
        parts, words = {"more": "super().__delattr__('head')"}, "no attribute 'head'"
        fix = "create head in __init__"
    with pytest.raises(ExportError, match=words) as caught:
        load_export(written(tmp_path, **parts))
    finding = caught.value.findings[-1]
    assert finding.code == code
    assert finding.line or name == "no class"
    assert re.search(fix, finding.fix)


@pytest.mark.parametrize(("code", "parts"), [
    ("mixes-texts", {"body": "return self.head(self.hidden(x).view(x.shape[1], len(x), -1).transpose(0, 1))"}),
    ("softmax-on-output", {"body": "y = self.head(self.hidden(x))\n        return torch.exp(y.log_softmax(-1))"}),
    ("no-gradient", {"body": "return self.head(self.hidden(x)).detach()"}),
    ("changes-its-input", {"body": "x[x > 3] = 3\n        return self.head(self.hidden(x))"}),
    ("some-lengths-fail", {"body": "assert x.shape[1] % 2 == 0\n        return self.head(self.hidden(x))"}),
    ("fixed-dtype", {"more": "self.head.bfloat16()", "body": "return self.head(self.hidden(x).bfloat16()).float()"}),
])  # fmt: skip
def test_what_runs_but_misbehaves_is_said(code: str, parts: dict, tmp_path: Path) -> None:
    model = load_export(written(tmp_path, **parts))
    assert [finding.code for finding in model.findings] == [code]
    ids = torch.arange(8).view(2, 4)
    model(ids)
    assert torch.equal(ids, torch.arange(8).view(2, 4))


def test_torch_works_as_before(tmp_path: Path) -> None:
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    load_export(written(tmp_path, **SOUND["global switches"]))
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()) == before


@pytest.mark.parametrize("code", [
    MODEL.format(**{**USUAL, "body": "h = self.hidden(x); return torch.softmax(h, -1), self.head(h)"}),
    MODEL.format(**{**USUAL, "inputs": "node_1", "body": "return self.head(self.hidden(node_1))"}),
    "import torch.nn as nn\n\ndef build_model():\n    return nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50))\n",
])  # fmt: skip
def test_reading_raises_no_false_alarm(code: str) -> None:
    assert diagnose(code, CONFIG) == []
