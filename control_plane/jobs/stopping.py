"""How a job process ends: asked by a signal, or because one of its parts did."""

import signal
import threading
from collections.abc import Callable
from types import FrameType


def watch(stop: threading.Event, alive: Callable[[], bool]) -> None:
    """Wait for `stop`; raise `RuntimeError` when a part ends before it."""
    while not stop.wait(1.0):
        if not alive():
            raise RuntimeError("a part of this process ended; see the log above")


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return stop
