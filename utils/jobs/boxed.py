"""The boxed process: puts up its walls, tries them, and only then imports and calls what it was asked to.

Started by box.py; the request comes as JSON over standard input. Until the walls stand it imports nothing but the
standard library and the walls.
"""

import importlib
import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from utils.jobs.trials import missing, try_walls
from utils.jobs.walls import OUR_CODE, Plan, put_up
from utils.runtime.files import hold

FAILED, NO_MEMORY, CANNOT_WRITE, NOT_ISOLATED = 70, 71, 73, 78


def main() -> int:
    """Read the request, build, try, report, and call the target; the exit code of this process."""
    request = json.loads(sys.stdin.buffer.read())
    _close_all_but(request["report"])
    plan = Plan(**{name: tuple(v) if isinstance(v, list) else v for name, v in request["plan"].items()})
    hold(Path(plan.home))  # until this process ends, so that nobody sweeps it away
    built = put_up(plan, request["without"])
    # The folder our package lies in is not readable now: the package itself is found, others are not looked for there.
    sys.path[:] = [entry for entry in sys.path if entry != str(OUR_CODE.parent)]
    walls = try_walls(request["parent"], request["canary"], plan.memory_bytes)
    closed_out = [folder for folder in (plan.home, *plan.write) if not _can_write(folder)]
    report = {"walls": [asdict(wall) for wall in walls], "built": built, "closed_out": closed_out}
    with os.fdopen(request["report"], "w") as pipe:
        json.dump(report, pipe)
    if closed_out:
        return CANNOT_WRITE
    if missing(walls) and not request["trusted"]:
        return NOT_ISOLATED
    return _call(request["target"], request["arguments"])


def _call(target: str, arguments: dict[str, Any]) -> int:
    module, _, name = target.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(**arguments)
        return result if isinstance(result, int) else 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else FAILED if leaving.code else 0
    except Exception as error:  # the edge of this process: whatever it was, the parent is told by code and last line
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        no_memory = isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)
        return NO_MEMORY if no_memory else FAILED


def _close_all_but(keep: int) -> None:
    """Nothing that was open in the parent stays open here; standard input becomes empty."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for output in (1, 2):
        if os.isatty(output):  # a terminal is open for both ways: what is typed there could be read
            os.dup2(os.open(os.ttyname(output), os.O_WRONLY | os.O_NOCTTY), output)
    for descriptor in os.listdir("/dev/fd"):
        if int(descriptor) > 2 and int(descriptor) != keep:
            try:
                os.close(int(descriptor))
            except OSError:  # the one the listing itself was read with
                continue


def _can_write(folder: str) -> bool:
    name = os.path.join(folder, f".tbt-{os.getpid()}")
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.unlink(name)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no exit hooks of strangers, no waiting for their threads
