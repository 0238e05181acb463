"""What this run was made with: versions, machine, git commit; and whether this is Colab."""

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

SECRET = re.compile(r"TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|AUTH|KEY|_PAT$|_URL$|_DSN$", re.IGNORECASE)


def without_secrets() -> dict[str, str]:
    """This process's environment variables, for one that needs no network: none whose name sounds like a secret."""
    return {name: value for name, value in os.environ.items() if not SECRET.search(name)}


def in_colab() -> bool:
    """Whether this process runs in Google Colab. Being able to import google.colab says nothing."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def packages() -> dict[str, str]:
    """Every installed distribution and its version, by name."""
    found = {dist.metadata["Name"]: dist.version for dist in distributions() if dist.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def git_commit(folder: Path | None = None) -> str | None:
    """The commit this code is at, with "+changes" when files differ from it; None outside a git checkout."""
    where = folder or Path(__file__).parents[2]
    try:
        if folder is None:  # installed inside somebody else's checkout, theirs is not our commit
            _git(where, "ls-files", "--error-unmatch", "utils/__init__.py")
        commit = _git(where, "rev-parse", "HEAD")
        changed = _git(where, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


def environment() -> dict[str, Any]:
    """Python, operating system, processor, commit and packages, ready for JSON."""
    return {
        "python": platform.python_version(),
        "os": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "colab": in_colab(),
        "git_commit": git_commit(),
        "packages": packages(),
    }


def _git(folder: Path, *words: str) -> str:
    # Set by git for its hooks: they would name another repository than the folder's.
    other = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"}
    own = {name: value for name, value in os.environ.items() if name not in other}
    result = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True, env=own
    )
    return result.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
