"""One measurement in this process: `python -m benchmarks.contenders NAME --shape 0.8M ...`, one JSON line out.

NAME `peak` measures matrix products instead. What a library prints goes to stderr; a failure is a JSON line, too.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--shape", default="0.8M")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", type=Path, help="folder with train.txt, val.txt and train.bin")
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    out = os.dup(1)
    os.dup2(2, 1)  # progress bars and banners are no result
    try:
        said = measure(options)
    except Exception as error:
        traceback.print_exc()
        said = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.flush()
    os.write(out, (json.dumps({"name": options.name, "shape": options.shape, **said}) + "\n").encode())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the line. Raises whatever the contender raises, ImportError where its library is missing."""
    import torch

    from . import peak
    from .job import Job, Watch
    from .shapes import CONTENDERS, SHAPES

    torch.set_num_threads(options.threads)
    if options.name == "peak":
        return peak.measure(options.device, options.seconds)
    shape, entry = SHAPES[options.shape], CONTENDERS[options.name]
    contender = importlib.import_module(f".{entry.module}", __package__)
    watch = Watch(options.seconds, options.device)
    with tempfile.TemporaryDirectory(prefix="contender-") as folder:
        job = Job(
            shape,
            entry,
            text=options.data / "train.txt",
            ids=options.data / "train.bin",
            device=options.device,
            threads=options.threads,
            nanogpt=options.nanogpt,
            settings=options.set,
            folder=Path(folder),
            watch=watch,
        )
        outcome = contender.run(job)
    return {
        **asdict(outcome),
        "tokens": len(watch.steps) * shape.tokens_per_step,
        "seconds": sum(watch.steps),
        "step_seconds": [round(step, 6) for step in watch.steps],
        "warm_up_seconds": watch.warm_up,
        "flops_per_token": shape.flops_per_token,
        "threads": torch.get_num_threads(),
        **watch.memory,
    }


if __name__ == "__main__":
    main()
