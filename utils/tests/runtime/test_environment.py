"""What a run was made with can be written down as JSON, and the commit is that of the real checkout."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from types import ModuleType

import pytest

from utils.runtime.environment import environment, git_commit, in_colab, packages


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Run git in a folder of this test, knowing nothing of the user's or the system's settings."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def run(*words):
        who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    return run


@pytest.fixture
def checkout(git, tmp_path):
    """A checkout with one commit of one file."""
    git("init", "--quiet")
    (tmp_path / "model.py").write_text("x = 1\n")
    git("add", "model.py")
    git("commit", "--quiet", "-m", "first")
    return tmp_path


def test_a_clean_checkout_gives_its_commit(git, checkout):
    commit = git_commit(checkout)
    assert commit == git("rev-parse", "HEAD")
    assert re.fullmatch(r"[0-9a-f]{40}", commit)


def test_a_folder_below_the_checkout_gives_the_same(git, checkout):
    (checkout / "below").mkdir()
    assert git_commit(checkout / "below") == git("rev-parse", "HEAD")


def test_changes_are_said(git, checkout):
    commit = git("rev-parse", "HEAD")
    (checkout / "model.py").write_text("x = 2\n")
    assert git_commit(checkout) == f"{commit}+changes"
    git("add", "model.py")
    assert git_commit(checkout) == f"{commit}+changes"
    git("commit", "--quiet", "-m", "second")
    assert git_commit(checkout) == git("rev-parse", "HEAD") != commit


def test_a_file_git_does_not_know_is_no_change(git, checkout):
    (checkout / "notes.txt").write_text("mine")
    assert git_commit(checkout) == git("rev-parse", "HEAD")


def test_outside_a_checkout_there_is_no_commit(git, tmp_path):
    assert git_commit(tmp_path) is None
    assert git_commit(tmp_path / "none") is None


def test_a_checkout_without_a_commit_has_none(git, tmp_path):
    git("init", "--quiet")
    assert git_commit(tmp_path) is None


def test_a_machine_without_git_has_no_commit(checkout, monkeypatch):
    assert git_commit(checkout) is not None
    monkeypatch.setenv("PATH", str(checkout))
    assert git_commit(checkout) is None


def test_another_repository_named_by_the_environment_is_not_asked(git, checkout, monkeypatch, tmp_path_factory):
    # git sets GIT_DIR for its hooks: a run started by one must not write down the hook's repository.
    outside = tmp_path_factory.mktemp("outside")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(outside.parent))
    assert git_commit(outside) is None
    monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))
    assert git_commit(outside) is None


def test_the_environment_is_json():
    found = environment()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["python"] == ".".join(map(str, sys.version_info[:3])) or found["python"].startswith("3.")
    assert found["os"]
    assert found["cores"] == os.cpu_count()
    assert isinstance(found["processor"], str)
    assert found["packages"] == packages()


def test_packages_have_names_and_versions():
    found = packages()
    assert found["pydantic"] == version("pydantic")
    assert found["numpy"] == version("numpy")
    assert all(isinstance(name, str) and name and isinstance(value, str) for name, value in found.items())
    assert list(found) == sorted(found, key=str.lower)


def test_colab_is_known_by_its_variable_or_its_module(monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    assert not in_colab()
    assert environment()["colab"] is False
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20261101")
    assert in_colab()
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    assert in_colab()
