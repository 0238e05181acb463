"""Signals that ask a run to stop: the trainer finishes its step, saves, and leaves."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO = 2.0  # seconds; Ctrl-C reaches a whole process group, and a parent may pass it on once more


class StopSignal:
    """While entered, remembers the first INT, TERM or HUP instead of dying of it; a later second one kills."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._first = 0.0
        self._old: dict[int, object] = {}

    def __call__(self) -> int | None:
        """The signal's number, or None: what a trainer polls."""
        return self.number

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            # What is ignored stays ignored: nohup does that to HUP.
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._old = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._first = number, time.monotonic()
        elif time.monotonic() - self._first > ECHO:
            os._exit(128 + number)
