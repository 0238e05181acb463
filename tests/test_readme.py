"""What the README says is so: its commands run, its files are there, its picture is a chart of ours."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.tests.walls import can_wall

README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALLER = (
    "model.shape.n_layer=1", "train.max_steps=2", "train.warmup_steps=1", "train.batch_size=2", "train.threads=1",
    "train.eval_batches=1", "train.sample_every=0", "data.seq_len=32",
)  # fmt: skip


def commands() -> list[str]:
    """Every `tbt` command in a block or a line of code, in the order of the text."""
    blocks = re.findall(r"^ *(tbt [^\n]+)", "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S)), re.M)
    inline = re.findall(r"`(tbt [^`]+)`", README)
    return list(dict.fromkeys([*blocks, *inline]))


def test_is_short():
    assert len(README.splitlines()) <= 150


def test_make_knows_the_two_commands():
    for target in ("run", "test", "setup"):
        assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True).returncode == 0


def test_commands_run(tbt, tmp_path: Path):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "book.txt").write_text("The cat sat on the mat and thought of fish. Once more.\n" * 300)
    assert (
        tbt("train", "--preset", "quickstart", *SMALLER, "data.size=20000", "--run-dir", "runs/quickstart-1").returncode
        == 0
    )
    ran = commands()
    assert len(ran) >= 9
    for command in ran:
        words = shlex.split(command)[1:]
        if words[0] == "train" and len(words) > 1 and "--config" not in words:
            words = [*words[:3], *(word for word in words[3:] if "max_steps" not in word), *SMALLER]
        elif words[0] == "train" or "FOLDER" in words or words[:2] == ["summary", "gpt-small"]:
            continue  # prose about a command, and a model of half a gigabyte
        if "tests/exports" in command and not can_wall():
            continue
        if words[0] == "find-rate":
            words += [*SMALLER, "data.size=20000"]
        if words[0] == "generate":
            words += ["--max-new-tokens", "5"]
        got = tbt(*words)
        assert got.returncode == 0, f"{command}: {got.stderr}"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(utils/[\w/.-]+)`|\]\((docs/[\w/.-]+)\)", README))))
def test_files_are_there(path: tuple[str, str]):
    assert (ROOT / (path[0] or path[1])).exists()


def test_every_room_is_in_the_tree():
    tree = README[README.index("utils/\n") :]
    for room in (path.name for path in (ROOT / "utils").iterdir() if (path / "__init__.py").exists()):
        assert f"  {room}/" in tree


def test_the_picture_is_a_loss_chart_with_its_floor():
    picture = (ROOT / re.search(r"\]\((docs/images/[\w.-]+\.svg)\)", README)[1]).read_text()
    assert all(words in picture for words in ("validation 0.", "best possible 0.", "loss, nats per token"))
