"""What the reading of somebody's code finds, what it follows, and that no text harms it."""

import json
from pathlib import Path

import pytest

from utils.models import attention, documents, gpt, layers, llama
from utils.models.inspect_code import LINT, CodeReport, inspect_code, kind_of

MODEL = '''\
"""A model."""
import math
import torch
import torch.nn.functional as F
from dataclasses import dataclass
from torch import nn

WIDTH = 4 * 16
device = torch.device("cpu")


@dataclass
class Shape:
    width: int = WIDTH


class Model(nn.Module):
    def __init__(self, vocab_size=10):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, WIDTH)
        self.scale = math.sqrt(WIDTH)

    @torch.no_grad()
    def generate(self, input):
        return getattr(self, "forward")(input).eval()

    def forward(self, input):
        return F.gelu(self.embed(input)) * self.scale


if __name__ == "__main__":
    print(Model())
'''


def kinds(source: str) -> dict[str, list[str]]:
    report = inspect_code(source)
    assert not report.problem
    found: dict[str, list[str]] = {}
    for use in report.uses:
        found.setdefault(use.kind, []).append(use.what)
    return found


def test_a_plain_model_has_nothing_unusual() -> None:
    report = inspect_code(MODEL)
    assert report.summary == "nothing unusual found"
    assert not report.uses
    assert all(item.usual for item in report.imports)
    assert [item.module for item in report.imports] == ["math", "torch", "torch", "dataclasses", "torch"]
    assert "nothing unusual found" in str(report)


PARTS = {f"utils.models.{name}" for name in ("attention", "documents", "layers")}  # each of them is read below


@pytest.mark.parametrize(("module", "house"), [
    (gpt, {"utils.config.schema", *PARTS}), (llama, {"utils.config.schema", *PARTS}),
    (attention, {"utils.models.layers"}), (documents, set()), (layers, {"utils.config.schema"}),
])  # fmt: skip
def test_the_house_s_models_touch_nothing(module: object, house: set[str]) -> None:
    report = inspect_code(Path(module.__file__).read_text(encoding="utf-8"))
    assert not report.uses
    assert {item.module for item in report.imports if not item.usual} == house


@pytest.mark.parametrize(("line", "kind", "what"), [
    ("open('a')", "file access", "open"),
    ("from pathlib import Path\nPath('a')", "file access", "pathlib.Path"),
    ("x.write_text('a')", "file access", ".write_text"),
    ("import os\nos.remove('a')", "file access", "os.remove"),
    ("import shutil as s\ns.rmtree('a')", "file access", "shutil.rmtree"),
    ("import numpy as np\nnp.load('a')", "file access", "numpy.load"),
    ("import torch\ntorch.load('a')", "file access", "torch.load"),
    ("from pickle import loads as l\nl(b'')", "file access", "pickle.loads"),
    ("import socket\nsocket.socket()", "network", "socket.socket"),
    ("import urllib.request\nurllib.request.urlopen(x)", "network", "urllib.request.urlopen"),
    ("from torch import hub\nhub.load(x)", "network", "torch.hub.load"),
    ("from transformers import AutoModel\nAutoModel.from_pretrained('a')", "network", ".from_pretrained"),
    ("import os as o\no.system('a')", "processes", "os.system"),
    ("from os import system as s\ns('a')", "processes", "os.system"),
    ("import torch\ntorch.os.system('a')", "processes", "torch.os.system"),
    ("__import__('os').system('a')", "processes", "os.system"),
    ("import importlib\nimportlib.import_module('subprocess').run('a')", "processes", "subprocess.run"),
    ("import os\ngetattr(os, 'system')('a')", "processes", "os.system"),
    ("import os\nf = os.system\ng = f\ng('a')", "processes", "os.system"),
    ("import os\nclass A:\n def f(self):\n  self.x = os.fork\n  self.x()", "processes", "os.fork"),
    ("import os\nfor f in [os.kill]: pass", "processes", "os.kill"),
    ("import os\nos.environ['A']", "environment", "os.environ"),
    ("import sys\nsys.path.append('a')", "environment", "sys.path.append"),
    ("import sys\nsys.modules['a']", "introspection", "sys.modules"),
    ("eval('a')", "dynamic code", "eval"),
    ("x = eval\nx('a')", "dynamic code", "eval"),
    ("ｅｖａｌ('a')", "dynamic code", "eval"),  # Python reads wide letters as the plain ones
    ("import builtins as b\nb.exec('a')", "dynamic code", "exec"),
    ("import os\ngetattr(os, a + b)", "dynamic code", "getattr of os by a computed name"),
    ("import base64\nbase64.b64decode(x)", "dynamic code", "base64.b64decode"),
    ("import torch.nn as nn\nnn.Linear = None", "dynamic code", "changes torch.nn.Linear"),
    ("import torch\nsetattr(torch, 'a', 1)", "dynamic code", "changes torch"),
    ("from os import *", "file access", "everything of os"),
    ("().__class__.__subclasses__()", "introspection", ".__subclasses__"),
    ("getattr(x, '__globals__')", "introspection", '"__globals__"'),
    ("import torch\ntorch.__dict__['os']", "introspection", ".__dict__ of a module"),
    (f"x = '{'QUJD' * 60}'", "hidden text", "240 signs that look like encoded data"),
    ("# coding: utf-7\nx = 1", "hidden text",
     "declares the encoding utf-7: Python may run other code than is shown here"),
    ("x = 1 # \u202e hidden", "hidden text", "signs that turn the reading direction"),
    ("for i in x: pass", "runs at import", "for"),
    ("f()", "runs at import", "calls f"),
    ("@f()\nclass A: pass", "runs at import", "calls f"),
    ("class A:\n    x = f()", "runs at import", "calls f"),
    ("def g(x=f()): pass", "runs at import", "calls f"),
    ("if x:\n    y = f()", "runs at import", "calls f"),
    ("try:\n    import a\nexcept ImportError:\n    f()", "runs at import", "calls f"),
])  # fmt: skip
def test_what_is_found(line: str, kind: str, what: str) -> None:
    assert what in kinds(line)[kind]


@pytest.mark.parametrize("line", [
    "def f(input, open_file, compile=False): return model.eval(), torch.compile(model), re.compile(x)",
    "class A:\n    def f(self): self.__dict__.update(a=1); return self.__class__.__name__",
    "import torch\ntorch.backends.cuda.matmul.allow_tf32 = True", "import os\nx = os.path.join('a', 'b')",
    "import logging\nlogger = logging.getLogger(__name__)",
    "try:\n    import flash_attn\nexcept ImportError:\n    flash = None",
    "from typing import TypeVar, TYPE_CHECKING\nT = TypeVar('T')\nif TYPE_CHECKING:\n    import einops",
    "f = lambda: g()",
    "from torch.signal import windows", "x = 'a long text of words that nobody would take for data ' * 10",
])  # fmt: skip
def test_what_is_harmless(line: str) -> None:
    assert kinds(line) == {}


def test_a_report_shows_the_lines_and_becomes_json() -> None:
    report = inspect_code("import os\nimport torch\n\ndef f():\n    return os.environ['HOME']  # <b>\n")
    assert report.summary == "1 x unusual import, 1 x environment"
    (use,) = report.uses
    assert (use.kind, use.what, use.line) == ("environment", "os.environ", 5)
    assert use.code == "return os.environ['HOME']  # <b>"
    assert "os.environ['HOME']" in str(report)
    assert LINT in str(report)
    assert "&lt;b&gt;" in report._repr_html_()
    values = json.loads(json.dumps(report.to_dict()))
    assert values["summary"] == report.summary
    assert values["counts"] == {"unusual import": 1, "environment": 1}


def test_lines_cannot_play_with_the_terminal_and_are_short() -> None:
    report = inspect_code(f"x = 1;{' ' * 5000}eval('a')  # \x1b[2J\n\f\nopen(1)")
    assert [(use.what, use.line) for use in report.uses if use.kind != "runs at import"] == [("open", 3), ("eval", 1)]
    hidden = next(use for use in report.uses if use.what == "eval")
    assert "eval('a')" in hidden.code
    assert "\x1b" not in str(report)
    assert all(len(use.code) <= 120 for use in report.uses)


def test_many_uses_are_counted_and_some_shown() -> None:
    report = inspect_code("def f():\n" + "    open('a')\n" * 3000)
    assert report.counts == {"file access": 3000}
    assert len(report.uses) == 50
    assert "and 2950 more" in str(report)


@pytest.mark.parametrize(("source", "says"), [
    ("x = 1\n" * 2_000_000, "12.0 MB; at most 5 MB"), ("x, " * 400_000, "more than 200,000 words and signs"),
    ("(" * 100_000, "too many nested parentheses"), ("-" * 100_000 + "1", "nested too deeply"),
    ("a" + ".b" * 90_000, "nested too deeply"), ("x = 1\0", "NUL"), ("'\ud800'", "surrogate"),
    ("def f(:", "Python cannot read line 1"),
    ("if x:\n\ty\n        z\n", "line 3"), ("x = " + "9" * 5000, "Python cannot"),
], ids=range(10))  # fmt: skip
def test_what_cannot_be_read_says_why(source: str, says: str) -> None:
    report = inspect_code(source)
    assert says in report.problem
    assert report.summary.startswith("not read: ")
    assert not report.uses
    assert len(str(report)) < 2000


def test_odd_text_is_read() -> None:
    expected = inspect_code(MODEL)
    assert inspect_code("\ufeff" + MODEL).imports == expected.imports
    assert inspect_code(MODEL.replace("\n", "\r\n")).imports == expected.imports
    assert inspect_code(MODEL.replace("\n", "\r")).imports == expected.imports
    assert inspect_code(MODEL.replace("    ", "\t")).imports == expected.imports
    assert inspect_code(MODEL.encode("latin-1").decode("latin-1") + "# caf\xe9 \xff").summary == expected.summary
    assert inspect_code("").summary == "nothing unusual found"
    assert isinstance(inspect_code("\f\n\x0b"), CodeReport)


@pytest.mark.timeout(60)  # seconds are enough on a busy machine; a quadratic walk takes hours
@pytest.mark.parametrize("source", [
    "import os\n" + "x = os.a.b\n" * 25_000, "".join(f"x{i} = x{i + 1}\n" for i in range(50_000)), "a" + ".b" * 900,
    "import os\nx = os" + ".b" * 800 + "\nx = x.y\n" * 1000, "f" + "()" * 900, f"x = '{'A' * 4_000_000}'",
    "import os\n" + "".join(f"x{i} = os.a{i}; x{i + 1} = x{i}.b\n" for i in range(10_000)),
], ids=range(7))  # fmt: skip
def test_hostile_text_ends(source: str) -> None:
    assert len(repr(inspect_code(source))) < 100_000


def test_full_names_have_kinds() -> None:
    assert kind_of("os.path.join") == ""
    assert kind_of("os.path.exists") == "file access"
    assert kind_of("torch.nn.Linear") == ""
    assert kind_of("dataclasses.sys.modules") == "introspection"
