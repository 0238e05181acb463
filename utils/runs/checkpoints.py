"""The checkpoints on disk: which are whole, which is the newest, which is the best. Reads only; no torch."""

import json
import re
from pathlib import Path
from typing import Any

from utils.runtime.files import read_regular, sha256_file, sha256_json

NAME = re.compile(r"step-(\d{10})")
MOST = 4_000_000  # bytes of a list of files: who trained may have run a stranger's code
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def folder_name(step: int) -> str:
    """The name of the checkpoint of an optimizer step."""
    return f"step-{step:010d}"


def find_checkpoint(root: Path, which: str) -> Path:
    """The checkpoint called best, latest or by its step; best is latest where no whole best one is.

    Raises FileNotFoundError, naming those there are.
    """
    found: Path | None = None
    if which == "best":
        found = best_checkpoint(root)
    if which == "latest" or (which == "best" and found is None):
        found, _ = newest_checkpoint(root)
    elif which.isdecimal():
        wanted = root / folder_name(int(which))
        found = wanted if verify(wanted) is not None else None
    if found is None:
        folders = [path for path in sorted(root.glob("step-*")) if NAME.fullmatch(path.name)]
        steps = [str(int(path.name[5:])) for path in folders if verify(path) is not None]
        there = ", ".join(["best", "latest", *steps]) if steps else "none"
        raise FileNotFoundError(f"no whole checkpoint {which!r} in {root}; there are: {there}")
    return found


def newest_checkpoint(root: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that verifies (None if none does), and the newer ones that do not."""
    folders = sorted((p for p in root.glob("step-*") if NAME.fullmatch(p.name)), reverse=True)
    damaged: list[Path] = []
    for folder in folders:
        if verify(folder) is not None:
            return folder, damaged
        damaged.append(folder)
    return None, damaged


def best_checkpoint(root: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, if it is there and verifies."""
    try:
        best = json.loads(read_regular(root / "best.json", MOST))
        folder = root / folder_name(best["step"])
        same = sha256_file(folder / "MANIFEST.json") == best["manifest_sha256"]
    except UNREADABLE:
        return None
    return folder if same and verify(folder) is not None else None


def verify(folder: Path) -> dict[str, Any] | None:
    """The manifest, if every file it names is there with the right bytes, and no other; else None."""
    try:
        wrapped = json.loads(read_regular(folder / "MANIFEST.json", MOST))
        manifest: dict[str, Any] = wrapped["manifest"]
        if sha256_json(manifest) != wrapped["sha256"]:
            return None
        if folder.name != folder_name(manifest["step"]):
            return None
        named = {Path(name) for name in (*manifest["files"], "MANIFEST.json")}
        folders = {parent for name in named for parent in name.parents} - {Path()}
        there = list(folder.rglob("*"))
        if {path.relative_to(folder) for path in there} != named | folders or any(map(Path.is_symlink, there)):
            return None
        for name, entry in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != entry["size"] or sha256_file(path) != entry["sha256"]:
                return None
    except UNREADABLE:
        return None
    return manifest
