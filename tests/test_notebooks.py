"""Both notebooks run top to bottom, and stay thin."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import nbformat
import pytest

from tests.conftest import ROOT
from utils.runs.folder import list_runs

NOTEBOOKS = {"training": 36, "template": 20}  # most cells
FAST = {"TBT_PRESET": "debug", "TBT_SET": "train.threads=1"}


def load(name: str):
    return nbformat.read(ROOT / f"{name}.ipynb", as_version=4)


def code_cells(name: str) -> list[str]:
    return [cell.source for cell in load(name).cells if cell.cell_type == "code"]


def plain(source: str) -> str:
    """A cell without the lines that only IPython reads."""
    return "\n".join(line for line in source.splitlines() if not line.startswith(("!", "%")))


def check_out(folder: Path) -> Path:
    """The notebooks and the package in a folder of their own, as a clone has them."""
    for name in NOTEBOOKS:
        shutil.copy(ROOT / f"{name}.ipynb", folder)
    shutil.copytree(ROOT / "utils", folder / "utils", ignore=shutil.ignore_patterns("__pycache__", "tests"))
    shutil.copy(ROOT / "requirements.txt", folder)
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh clone."""
    return check_out(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A clone in which training.ipynb was run in the terminal, and what that said."""
    folder = check_out(tmp_path_factory.mktemp("trained"))
    return folder, run_notebook(folder)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_valid_and_committed_without_outputs(name: str):
    notebook = load(name)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= NOTEBOOKS[name]
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_are_thin(name: str):
    for source in code_cells(name):
        lines = [line for line in source.splitlines() if line.strip()]
        assert len(lines) <= (10 if "#@param" in source else 5), source
        tree = ast.parse(plain(source))
        for node in ast.walk(tree):
            assert not isinstance(
                node, (ast.FunctionDef, ast.ClassDef, ast.Try, ast.For, ast.While, ast.With, ast.Lambda)
            ), source
            assert not (isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "input")), source
        ifs = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
        assert all("#@param" in source and isinstance(node.test, ast.Name) for node in ifs), source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_headings_are_numbered_and_say_how_long(name: str):
    headings = [
        line for cell in load(name).cells if cell.cell_type == "markdown"
        for line in cell.source.splitlines() if line.startswith("## ")
    ]  # fmt: skip
    assert [heading.split()[1] for heading in headings] == [f"{i + 1}." for i in range(len(headings))]
    for heading in headings[:-1]:  # the last one is what comes after
        assert re.search(r"second|minute", heading), heading


def test_training_stands_alone_in_its_cell():
    cell = next(source for source in code_cells("training") if "train(config)" in source)
    assert [line for line in cell.splitlines() if line and not line.startswith("from")] == ["train(config)"]


def test_the_repository_has_one_address():
    url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    slug = url.removeprefix("https://github.com/")
    for path in ("training.ipynb", "template.ipynb", "README.md"):
        found = set(
            re.findall(
                r"github(?:\.com)?/([\w.-]+/[\w.-]+?)(?:/blob|\.git| |\"|\\|\)|$)", (ROOT / path).read_text(), re.M
            )
        )
        assert found == {slug}, path


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_from_top_to_bottom(name: str, checkout: Path):
    words = [
        sys.executable,
        "-m",
        "pytest",
        "--nbmake",
        "--nbmake-timeout=300",
        "-q",
        "-p",
        "no:cacheprovider",
        f"{name}.ipynb",
    ]
    got = subprocess.run(words, cwd=checkout, env={**os.environ, **FAST}, capture_output=True, text=True)
    assert got.returncode == 0, got.stdout[-3000:]
    assert "1 passed" in got.stdout


def run_notebook(checkout: Path, name: str = "training.ipynb", **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "utils", "notebook", "run", name]
    environment = {**os.environ, "PYTHONPATH": str(checkout), **FAST, **environment}
    return subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)


def test_a_notebook_in_the_terminal_streams_and_leaves_the_run_itself_and_a_page(trained):
    checkout, got = trained
    assert got.returncode == 0, got.stdout + got.stderr
    (run,) = list_runs(checkout / "runs")
    assert got.stdout.splitlines()[-1] == f"run: runs/{run.name}"
    for words in ("## 5. Train", "best possible loss", "completed at step 20", "bits per byte"):
        assert words in got.stdout
    executed = json.loads((run.path / "training.ipynb").read_text())
    counts = [cell["execution_count"] for cell in executed["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(code_cells("training")) + 1))
    page = (run.path / "training.html").read_text()
    pictures = ("loss by step", "time: ", "update to weight ratio by layer and step")
    for words in ("tokens per second", *(f'aria-label="{name}' for name in pictures)):
        assert words in page
    # Run All again goes on, or as here finds that all is done.
    again = run_notebook(checkout)
    assert again.returncode == 0
    assert len(list_runs(checkout / "runs")) == 1


def test_every_cell_after_training_works_after_a_restart_of_the_kernel(trained):
    checkout, got = trained
    assert got.returncode == 0, got.stdout + got.stderr
    notebook = nbformat.read(checkout / "training.ipynb", as_version=4)
    train = next(i for i, cell in enumerate(notebook.cells) if "train(config)" in cell.source)
    notebook.cells = notebook.cells[train + 1 :]
    nbformat.write(notebook, checkout / "after.ipynb")
    got = run_notebook(checkout, "after.ipynb")
    assert got.returncode == 0, got.stdout + got.stderr
    assert "bits per byte" in got.stdout


def test_a_failing_cell_is_reported_and_what_ran_is_kept(checkout: Path):
    got = run_notebook(checkout, TBT_SET="train.max_step=3")
    assert got.returncode == 1
    assert "unknown setting train.max_step: did you mean train.max_steps?" in got.stderr
    assert (checkout / "runs/notebooks/training.ipynb").exists()


def test_a_rate_is_found_and_own_text_trains_too(checkout: Path):
    (checkout / "book.txt").write_text("the cat sat on the mat and thought of fish\n" * 300)
    notebook = nbformat.read(checkout / "training.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace('own_text = ""', 'own_text = "book.txt"')
        cell.source = cell.source.replace("look_for_a_rate = False", "look_for_a_rate = True")
    nbformat.write(notebook, checkout / "own.ipynb")
    got = run_notebook(checkout, "own.ipynb")
    assert got.returncode == 0, got.stdout + got.stderr
    assert len(list_runs(checkout / "runs")) == 2  # finding a rate leaves none
    assert "suggestion: train.learning_rate=" in got.stdout


def small_notebook(folder: Path, *cells: str) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    folder.mkdir()
    nbformat.write(notebook, folder / "small.ipynb")
    return folder / "small.ipynb"


def test_a_notebook_elsewhere_leaves_everything_beside_its_own_run(tbt, tmp_path: Path):
    path = small_notebook(
        tmp_path / "sub", "from pathlib import Path; Path('runs/z').mkdir(parents=True); print('run: runs/z')"
    )
    got = tbt("notebook", "run", path.relative_to(tmp_path))
    assert got.returncode == 0, got.stderr
    assert got.stdout.splitlines()[-1] == "run: sub/runs/z"
    assert (tmp_path / "sub/runs/z/small.html").exists()
    assert not (tmp_path / "runs").exists()


def test_a_kernel_that_dies_is_an_error_and_what_ran_is_kept(tbt, tmp_path: Path):
    path = small_notebook(tmp_path / "sub", "print('before')", "import os; os._exit(9)")
    got = tbt("notebook", "run", path)
    assert got.returncode == 1
    assert "Traceback" not in got.stderr
    assert "before" in (tmp_path / "sub/runs/notebooks/small.html").read_text()


def test_an_interrupt_saves_training_and_stops_run_all(checkout: Path):
    environment = {**os.environ, "PYTHONPATH": str(checkout), **FAST}
    environment["TBT_SET"] += " train.max_steps=100000 train.save_every=0 train.eval_every=0 train.sample_every=0"
    words = [sys.executable, "-m", "utils", "notebook", "run", "training.ipynb"]
    process = subprocess.Popen(
        words, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(run.state().get("step") for run in list_runs(checkout / "runs")):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    (run,) = list_runs(checkout / "runs")
    assert run.status() == "interrupted"
    assert len(list(run.checkpoints.glob("step-*"))) == 1
    assert "## 6. Look" not in output


def test_in_an_empty_folder_the_first_cell_fetches_the_code(tmp_path: Path):
    """As in Colab: only the notebook is there. Real git, told to find the repository's address in this checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is nothing to clone")
    url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    shutil.copy(ROOT / "template.ipynb", tmp_path)
    here = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{ROOT}.insteadOf", "GIT_CONFIG_VALUE_0": url}
    words = [sys.executable, "-m", "utils", "notebook", "run", "template.ipynb"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **here}
    got = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert got.returncode == 0, got.stdout + got.stderr
    assert (tmp_path / "utils" / "validation" / "tier1.py").exists()
    assert re.search(r"Is quickstart sound\?  SOUND \(\d+ passed\)", got.stdout)
