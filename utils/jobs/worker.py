"""The process that trains: `python -m utils.jobs.worker RUN_FOLDER`. It writes the folder, and nothing else.

Exit codes: 0 done, 1 failed, 2 the request was wrong, 75 another process has the run, 128 + n signal n.
"""

import sys
import traceback
from pathlib import Path

BUSY = 75  # EX_TEMPFAIL


def main(folder: str) -> int:
    """Train the run whose config.yaml lies in `folder`; what goes wrong is the last line of stderr."""
    from utils.runs.folder import RunFolder
    from utils.training.interrupt import StopSignal

    with StopSignal() as stop:
        try:
            from utils.training.run import run_training  # here, so that a signal during torch's import counts

            config = RunFolder(folder).config().model_copy(update={"run_dir": str(Path(folder))})
            result = run_training(config, stop)
        except BlockingIOError as error:
            return _say(error, BUSY)
        except (ValueError, FileNotFoundError) as error:
            traceback.print_exc()
            return _say(error, 2)
        except Exception as error:  # the process's edge: the launcher only sees the code and the log
            traceback.print_exc()
            return _say(error, 1)
    return 0 if result.signal is None else 128 + result.signal


def _say(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
