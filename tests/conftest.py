"""Fixtures of the system tests: the doors people use, as processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.tests import settings  # noqa: F401

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tbt(tmp_path: Path):
    """Run `tbt WORDS` in an empty folder; gives the finished process with its text output."""

    def run(*words: object, **options) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "utils", *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, **options
        )

    return run


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """Real text beside the checkout, where there is some."""
    path = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
    if not path.exists():
        pytest.skip("needs ../shared/data/tinyshakespeare.txt, which a clone does not have")
    return path
