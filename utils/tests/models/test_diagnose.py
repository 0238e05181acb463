"""Each planted defect is found in its line, and good code of many hands raises no alarm."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from utils.models import gpt, llama
from utils.models.diagnose import diagnose, heads, is_intermediate
from utils.models.findings import Finding
from utils.models.module_view import GIVEN
from utils.models.names import unknown_names

GOOD = """\
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, d_model=16):
        super().__init__()
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y)


class MyGPT(nn.Module):
    def __init__(self, vocab_size=100, d_model=16):
        super().__init__()
        self.embed = nn.Embedding(100, d_model)
        self.block = Block(d_model)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(self, input_ids):
        x = self.block(self.embed(input_ids))
        return self.head(x)
"""
CONFIG = {"model_name": "MyGPT", "vocab_size": 100, "d_model": 16, "n_heads": 2}
TRANSFORMERS = Path(importlib.util.find_spec("transformers").origin).parent / "models"
FAMILIES = ["gpt2", "bert", "t5", "llama", "mistral", "bart", "mamba", "gpt_neox", "longt5", "switch_transformers"]


def found(code: str, config: dict | None = None) -> dict[str, Finding]:
    return {finding.code: finding for finding in diagnose(code, CONFIG if config is None else config)}


def changed(*pairs: tuple[str, str]) -> str:
    code = GOOD
    for old, new in pairs:
        assert old in code
        code = code.replace(old, new)
    return code


def test_good_code_has_no_findings() -> None:
    assert diagnose(GOOD, CONFIG) == []
    assert diagnose(GOOD, {}) == []


PLANTED = [
    ("syntax-error", "return self.head(x)", "return self.head(x", "fail", "self.head(x"),
    ("undefined-name", "return self.head(x)", "return self.head(hidden)", "fail", "hidden is used in MyGPT.forward"),
    ("undefined-name", "import torch.nn.functional as F\n", "\n", "fail", "F is used in Block.forward"),
    ("undefined-name", "        y = F.scaled", "        x = x + y\n        y = F.scaled", "fail", "before line 15"),
    ("undefined-name", "def forward(self, input_ids):", "def forward(self, input_ids: Tensor):", "fail", "Tensor"),
    ("undefined-attribute", "return self.head(x)", "return self.haed(x)", "fail", "self.haed"),
    ("unused-module", "x + self.out(y)", "x + y", "warn", "self.out"),
    ("no-forward", "    def forward(self, input_ids):", "    def run(self, input_ids):", "fail", "MyGPT has no"),
    ("no-return", "        return self.head(x)", "        self.head(x)", "fail", "forward of MyGPT returns nothing"),
    ("no-super-init", "        super().__init__()\n        self.embed", "        self.embed", "fail", "never calls"),
    ("no-super-init", "        super().__init__()\n        self.embed = nn.Embedding(100, d_model)\n",
     "        self.embed = nn.Embedding(100, d_model)\n        super().__init__()\n", "fail", "sets self.embed before"),
    ("no-model", "(nn.Module)", "", "fail", "Block, MyGPT"),
    ("vocabulary-mismatch", "nn.Embedding(100", "nn.Embedding(50", "fail", "50 rows, but config.json says 100"),
    ("vocabulary-mismatch", "nn.Embedding(100", "nn.Embedding(128", "warn", "128 rows"),
    ("no-causal-mask", ", is_causal=True", "", "warn", "MyGPT says this is a decoder"),
    ("softmax-on-output", "return self.head(x)", "return F.softmax(self.head(x), dim=-1)", "warn", "probabilities"),
    ("softmax-on-output", "return self.head(x)", "x = self.head(x).softmax(-1)\n        return x", "warn", "MyGPT"),
    ("hard-coded-device", "self.embed(input_ids)", "self.embed(input_ids.cuda())", "warn", ".cuda()"),
    ("hard-coded-device", "self.embed(input_ids)", 'self.embed(input_ids.to("cuda:0"))', "warn", '"cuda:0"'),
]  # fmt: skip


@pytest.mark.parametrize(("code", "old", "new", "severity", "says"), PLANTED, ids=lambda value: str(value)[:30])
def test_a_planted_defect_is_found(code: str, old: str, new: str, severity: str, says: str) -> None:
    text = changed((old, new))
    finding = found(text)[code]
    assert finding.severity == severity
    assert says in finding.message
    assert finding.fix
    assert finding.line > 0 or code == "no-model"


def test_the_exporter_that_takes_its_own_nodes() -> None:
    code = changed(
        ("(self, input_ids):", "(self, input_ids, mhsa_0_output, residual_0_output, ffn_1_output):"),
        ("self.block = Block", "self.mhsa_0 = Block"),
        (
            "self.block(self.embed(input_ids))",
            "self.embed(input_ids) + mhsa_0_output + residual_0_output + ffn_1_output",
        ),
    )
    (finding,) = [f for f in diagnose(code, CONFIG) if f.severity == "fail"]
    assert finding.code == "forward-takes-intermediates"
    assert "3 of its parameters" in finding.message
    assert "mhsa_0_output, residual_0_output, ffn_1_output" in finding.message
    assert "mhsa_0_output = self.mhsa_0(...)" in finding.fix
    assert "def forward(self, input_ids, mhsa" in code.splitlines()[finding.line - 1]


def test_a_class_that_is_left_over_is_not_the_model() -> None:
    rest = "\n\nclass Rest(nn.Module):\n    def forward(self, ffn_1_output):\n        return ffn_1_output\n"
    assert diagnose(GOOD + rest, {}) == []
    named = found(GOOD + rest, {"model_name": "Rest"})
    assert "ffn_1_output" in named["forward-takes-intermediates"].message


@pytest.mark.parametrize("name", ["mhsa_0_output", "residual_0_output", "ffn_1_output", "attention_0",
                                  "layer_norm_0_out", "encoder_output", "last_hidden",
                                  "token_embedding_0_output"])  # fmt: skip
def test_names_of_results(name: str) -> None:
    assert is_intermediate(name)


@pytest.mark.parametrize("name", ["input_ids", "input_0_tokens", "x", "x1", "idx", "src", "tgt", "attention_mask",
                                  "mask_0", "attention_mask_0", "token_type_ids", "input_1", "position_ids",
                                  "y", "z2"])  # fmt: skip
def test_names_of_inputs(name: str) -> None:
    assert not is_intermediate(name)


def test_the_config() -> None:
    assert "MyGPT" in found(GOOD, {"model_name": "MyGTP"})["unknown-model-name"].fix
    wrong = found(GOOD, {**CONFIG, "n_heads": 3})["heads-do-not-divide"]
    assert wrong.message == "d_model = 16 does not divide by n_heads = 3"
    assert "n_heads to 2" in wrong.fix
    graph = {"nodes": [{"params": {"d_model": 64, "num_heads": 5}}, {"params": {"vocab_size": 100}}], "version": 1}
    assert [f.code for f in diagnose(GOOD, graph)] == ["heads-do-not-divide"]
    assert list(heads({"hidden_size": 10, "num_heads": 4, "head_dim": 8})) == []
    assert len(list(heads({"d_model": 10, "nhead": 0}))) == 1
    for odd in (None, [], {"nodes": None, 3: [[{}]], "vocab_size": "many", "d_model": True, "model_name": ["x"]}):
        assert diagnose(GOOD, odd) == []  # type: ignore[arg-type]


SILENT = """
import os
for i in range(2):
    if i: print(late)
    late = 1
def a():
    while True:
        try: return b
        except KeyError as e: print(e)
        b = 1
def later(): return defined_below
defined_below = [p for q in [[1]] for p in q if (w := p)] + [w]
class C:
    x = 1; y = [x for _ in range(x)]; __z = 2
    def m(self): return __class__, self.__z
def g():
    global made
    made = 1
def h(*args, k=made, **kw): return args, kw, k, __file__, __name__
def n():
    c = 0
    def inner():
        nonlocal c
        c += 1
        return inner, after
    after = 2
    return inner
try: unicode
except NameError: unicode = str
def t(v):
    with open(v) as (f, [j, *l]): pass
    match v:
        case {"a": z, **rest}: return z, rest
        case [first, *others] | (first, others): return first, others
        case int() as number: return number
    del f
    x: int
    return (lambda r=v: r + j, {s: u for s, u in l}, f"{v!r:>{j}}")
def dead():
    raise NotImplementedError
    return nothing
async def co(s):
    async with s as r:
        async for q in r: yield q, [z async for z in r]
"""


def test_orders_and_scopes_that_are_right() -> None:
    assert unknown_names(ast.parse(SILENT)) == []
    assert unknown_names(ast.parse("from x import *\nprint(anything)")) == []
    assert unknown_names(ast.parse("globals()['a'] = 1\nprint(a)")) == []


@pytest.mark.parametrize(("code", "name"), [
    ("def f():\n    return q", "q"), ("def f():\n    q += 1", "q"), ("print(q)\nq = 1", "q"), ("class A(q): pass", "q"),
    ("def f():\n    [1 for x in q]", "q"), ("def f():\n    q = [q for z in q]", "q"), ("def f(a=q): pass", "q"),
    ("class A:\n    q = 1\n    def f(self): return q", "q"), ("@q\ndef f(): pass", "q"), ("def f(): q.x = 1", "q"),
    ("def f(v):\n    if v:\n        print(q)\n    q = 1", "q"), ("lambda: q", "q"), ("def f(): del q[0]", "q"),
])  # fmt: skip
def test_orders_and_scopes_that_are_wrong(code: str, name: str) -> None:
    assert [item.name for item in unknown_names(ast.parse(code))] == [name]


@pytest.mark.parametrize(("old", "new"), [
    ("        self.qkv =", "        setattr(self, 'a' + 'b', 1)\n        self.qkv ="),
    ("        self.qkv =", "        self.register_buffer('ab', None)\n        self.qkv ="),
    ("        self.qkv =", "        prepare(self)\n        self.qkv ="),
    ("class Block(nn.Module):", "class Block(Elsewhere):"), ("class Block(nn.Module):", "class Block(nn.Linear):"),
    ("class Block(nn.Module):", "class Block(nn.Module):\n    def __getattr__(self, name): return 1\n"),
    ("class Block(nn.Module):", "class Block(nn.Module):\n    ab: int\n"),
    ("class Block(nn.Module):", "class Base(nn.Module):\n    def start(self): self.ab = 1\n\n\nclass Block(Base):"),
])  # fmt: skip
def test_attributes_that_may_exist(old: str, new: str) -> None:
    code = changed((old, new), ("return x + self.out(y)", "return x + self.out(y) + self.ab"))
    assert "undefined-attribute" not in found(code)
    assert "undefined-attribute" in found(changed(("return x + self.out(y)", "return x + self.out(y) + self.ab")))


def test_given_names_are_torch_s_own() -> None:
    # Of torch alone: transformers adds a method to every module of a process that has imported it.
    homes = {name: getattr(getattr(nn.Module, name, None), "__module__", None) for name in dir(nn.Module())}
    assert {name for name, home in homes.items() if (home or "torch").startswith("torch") and name[0] != "_"} <= GIVEN


@pytest.mark.parametrize("family", FAMILIES)
def test_no_false_alarm_in_published_models(family: str) -> None:
    text = (TRANSFORMERS / family / f"modeling_{family}.py").read_text(encoding="utf-8")
    assert [f for f in diagnose(text, {}) if f.severity == "fail"] == []


@pytest.mark.parametrize("module", [gpt, llama, sys.modules["torch.nn.modules.transformer"]])
def test_no_false_alarm_in_good_modules(module: object) -> None:
    assert diagnose(Path(module.__file__).read_text(encoding="utf-8"), {}) == []


def test_odd_text_is_read_and_hostile_text_is_told() -> None:
    for odd in ("\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), GOOD.replace("\n\n\n", "\n\f\n\n"),
                GOOD.replace("    ", "\t"), "# caf\xe9\n" + GOOD):  # fmt: skip
        assert diagnose(odd, CONFIG) == []
    assert found(GOOD + "\0")["syntax-error"].line == GOOD.count("\n") + 1
    assert "5 MB" in found("#" * 10_000_000)["unreadable-code"].message
    assert "syntax-error" in found("(" * 100_000)
    assert "syntax-error" in found("if x:\n\ty = 1\n        z = 2\n")
    assert found("\n\f\nx = = 1")["syntax-error"].line == 3


@pytest.mark.parametrize("code", [
    "-" * 100_000 + "1", "a" + ".b" * 90_000, "1" + "+1" * 90_000, "x = " + "a if b else " * 50_000 + "c", "'\ud800'",
    "f" + "()" * 2_500, "1" + "+1" * 2_500, "x = 1\n" * 60_000, "def f():\n" + "    print(q); q = 1\n" * 15_000,
    "".join(f"class A{i}(A{i - 1}): pass\n" for i in range(15_000)), "if a: pass\n" + "elif b: pass\n" * 2_000,
    "from torch import nn\nclass A(nn.Module):\n def forward(self):\n" + "  self.a = self.b(self.c)\n" * 10_000,
], ids=lambda code: code[:20].encode("ascii", "replace").decode())  # fmt: skip
@pytest.mark.timeout(60)  # seconds are enough on a busy machine; a quadratic walk takes hours
def test_hostile_text_ends(code: str) -> None:
    assert all(isinstance(finding, Finding) for finding in diagnose(code, {"vocab_size": 3}))


def test_reading_imports_no_torch() -> None:
    code = "import sys, utils.models.diagnose, utils.models.inspect_code; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
