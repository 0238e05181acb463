"""The house keeps its plan: who may import whom, empty inits, short files, light modules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UTILS = ROOT / "utils"
MAX_LINES = 400
# A room imports from itself and from the rows below it, never from its own row or above.
LAYERS = [
    {"cli", "tui", "notebook"},
    {"serving", "jobs", "hub"},
    {"validation"},  # below jobs: a stranger's model is validated in a boxed process
    {"export"},
    {"training"},
    {"inference"},
    {"models", "data", "followers"},
    {"runs"},
    {"config", "runtime"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(path for path in UTILS.rglob("*.py") if "tests" not in path.parts)
TOP = {
    "template.ipynb", "training.ipynb", "utils", ".tasks", "tests", "requirements.txt", "README.md", "pyproject.toml",
    "constraints.txt", "Makefile", "LICENSE", "benchmarks", "docs", ".ci", ".github", ".gitignore",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Every `utils.room` a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("utils.")}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [f for f in FILES if f.parent != UTILS], ids=name)
def test_imports_point_down(path: Path):
    room = path.relative_to(UTILS).parts[0]
    for other in imports(path) - {room}:
        assert LEVEL[other] > LEVEL[room], f"{name(path)} must not import from utils.{other}"


def test_every_room_has_its_place():
    rooms = {path.name for path in UTILS.iterdir() if path.is_dir() and path.name not in ("tests", "__pycache__")}
    assert rooms <= set(LEVEL)


@pytest.mark.parametrize("path", sorted(ROOT.glob("utils/**/__init__.py")), ids=name)
def test_init_holds_at_most_a_docstring(path: Path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert len(body) <= 1
    assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


@pytest.mark.parametrize("path", sorted([*ROOT.glob("utils/**/*.py"), *ROOT.glob("tests/**/*.py")]), ids=name)
def test_files_are_short(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_says_what_it_is(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("module", ["utils.cli.main", "utils.config.load", "utils.jobs.launch", "utils.runs.overview",
                                    "utils.cli.progress", "utils.notebook.display",
                                    "utils.data.looking.inspect"])  # fmt: skip
def test_light_modules_import_no_torch(module: str):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_top_level_holds_only_what_the_plan_names():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} <= TOP


def test_nothing_is_pickled():
    """No file format that runs code when it is read (torch.save is pickle, too)."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("torch.load", "torch.save", "yaml.load", "pickle.load", "pickle.dump"), name(path)
            assert not (isinstance(node, ast.Import) and {a.name for a in node.names} & {"pickle", "dill", "joblib"})
