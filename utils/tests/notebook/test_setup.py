"""Installing what is missing, beside what is there: real pip, a package made here, no network."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from utils.notebook.setup import install_beside, missing, set_up


def wheel(folder: Path, name: str, version: str, needs: str = "") -> None:
    """A package as small as pip takes it."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")
        requires = f"Requires-Dist: {needs}\n" if needs else ""
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def test_missing_names_what_nothing_installed_satisfies(tmp_path: Path):
    file = tmp_path / "requirements.txt"
    file.write_text("# a comment\n\npydantic>=2  # why\nnot-there-at-all>=1\nnumpy>=999\n")
    assert missing(file) == ["not-there-at-all>=1", "numpy>=999"]


def test_this_environment_lacks_nothing():
    shown = str(set_up(install=False))
    assert "nothing: all is here" in shown
    assert "torch" in shown


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    wheel(tmp_path, "tbt_addition", "1.0")
    wheel(tmp_path, "tbt_mover", "1.0", needs="pydantic==1.0")
    return tmp_path


def test_an_addition_is_installed_and_nothing_else_moves(wheels: Path):
    target = wheels / "site"
    install_beside(["tbt-addition"], "--no-index", "--find-links", str(wheels), "--target", str(target))
    assert (target / "tbt_addition.py").exists()
    assert sorted(path.name for path in target.glob("*.dist-info")) == ["tbt_addition-1.0.dist-info"]


def test_what_would_move_an_installed_package_fails_instead(wheels: Path):
    with pytest.raises(subprocess.CalledProcessError):
        install_beside(["tbt-mover"], "--no-index", "--find-links", str(wheels), "--target", str(wheels / "site"))
    assert subprocess.run([sys.executable, "-c", "import pydantic"]).returncode == 0
