"""The process in which a stranger's model writes text: each piece is one line of JSON on standard output."""

import json
import sys
from pathlib import Path
from typing import Any

from utils.inference.complete import complete


def main(path: str, **settings: Any) -> int:
    """Stream {"text": piece} of `complete(path, **settings)`, or one {"error": words} for a request that is wrong."""
    pieces = sys.stdout
    sys.stdout = sys.stderr  # what the model's code prints is no text of the model's
    try:
        for piece in complete(Path(path), **settings):
            print(json.dumps({"text": piece}), file=pieces, flush=True)
    except (ValueError, FileNotFoundError) as error:
        print(json.dumps({"error": str(error)}), file=pieces, flush=True)
    return 0
