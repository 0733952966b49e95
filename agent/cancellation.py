"""Calling a step off from another thread, at once even while it waits for a socket or a child."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent.errors import CanceledError


class Cancellation:
    """One step's way to be called off; `stopping` registers what ends its wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._canceled = threading.Event()
        self._stops: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """Call the step off."""
        with self._lock:
            self._canceled.set()
            stops = list(self._stops)
        for stop in stops:
            stop()

    def check(self) -> None:
        """Raise `CanceledError` if the step was called off."""
        if self._canceled.is_set():
            raise CanceledError

    def wait(self, seconds: float) -> None:
        """Wait so long; `CanceledError` as soon as the step is called off."""
        self._canceled.wait(seconds)
        self.check()

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Call `stop` when the step is called off inside this block."""
        with self._lock:
            self._stops.append(stop)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._stops.remove(stop)
