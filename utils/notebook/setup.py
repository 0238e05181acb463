"""The first cell: where are we, what is here, what is missing; installs only that, and only where asked."""

import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from packaging.requirements import Requirement

from utils.runtime.environment import in_colab
from utils.runtime.table import Table

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"


def set_up(install: bool = True) -> Table:
    """Say what this notebook runs on; with `install`, add the packages of requirements.txt that are missing.

    Nothing that is installed is ever moved: the versions that are here are pip's constraints, so an install
    that would change one fails instead, loudly (CalledProcessError with pip's words).
    """
    lacking = missing(REQUIREMENTS)
    if lacking and install:
        install_beside(lacking)
    import torch

    from utils.runtime.device import describe, pick_device

    rows = (
        ("where", "Google Colab" if in_colab() else "this machine"),
        ("python", sys.version.split()[0]),
        ("torch", torch.__version__),
        ("device", describe(pick_device())),
        ("installed now" if install else "missing", ", ".join(lacking) or "nothing: all is here"),
    )
    return Table(rows)


def missing(requirements: Path) -> list[str]:
    """The lines of a requirements file that nothing installed satisfies."""
    lines = [line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not _is_there(Requirement(line))]


def install_beside(requirements: list[str], *options: str) -> None:
    """pip install, with every installed package held at its version."""
    held = {dist.metadata["Name"]: dist.version for dist in distributions() if dist.metadata["Name"]}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("".join(f"{name}=={held[name]}\n" for name in sorted(held)))
        constraints.flush()
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", constraints.name]
        subprocess.run([*pip, *options, *requirements], check=True)


def _is_there(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False
