"""A process that has imported everything and trains in forks of itself: an attempt costs a fraction of a second.

One JSON line in: {"config": YAML, "arm": [k, mode, errno, sticky] or null, "kill_after": seconds or null,
"signal": number}. One out: {"code": exit code, or minus the signal, "calls": how many changed a file, "seconds",
"said": the end of its output}.
"""

import ctypes
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from typing import Any, BinaryIO

import torch._dynamo  # the first optimizer imports it, which would take a second of every attempt

from utils.config.load import parse_config
from utils.jobs.launch import prepare_inline
from utils.training.interrupt import StopSignal
from utils.training.run import run_training

CALLS = b"file calls: "


def train(order: dict[str, Any]) -> int:
    """What `tbt train --inline` does; the exit code."""
    config, arm = parse_config(order["config"]), order["arm"]
    library = ctypes.CDLL(None)
    try:
        if arm:
            k, mode, error, sticky = arm
            library.inject_arm(os.path.abspath(config.run_dir).encode(), ctypes.c_long(k), mode, error, sticky)
        with StopSignal() as stop:
            result = run_training(prepare_inline(config), stop)
        return 0 if result.signal is None else 128 + result.signal
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        if arm:
            library.inject_calls.restype = ctypes.c_long
            print(CALLS.decode() + str(library.inject_calls()), flush=True)


def attempt(order: dict[str, Any]) -> dict[str, Any]:
    """One training in a fork."""
    out: BinaryIO
    with tempfile.TemporaryFile() as out:
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            os._exit(train(order))
        sent, after = False, order.get("kill_after")
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                break
            if after is not None and not sent and time.monotonic() - begin >= after:
                os.kill(child, order.get("signal", signal.SIGKILL))
                sent = True
            time.sleep(0.0005)
        seconds = time.monotonic() - begin
        out.seek(0)
        said = out.read()
    calls = int(said.rpartition(CALLS)[2].split()[0]) if CALLS in said else 0
    return {
        "code": os.waitstatus_to_exitcode(status), "calls": calls, "seconds": seconds,
        "said": said.decode(errors="replace")[-2000:],
    }  # fmt: skip


def main() -> None:
    """Answer lines until there are no more."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(attempt(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
