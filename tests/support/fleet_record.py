"""The record of a simulated fleet, read while it grows."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT_S = 120.0
LOOK_S = 0.1


class Record:
    """What happened to a fleet so far, a line each.

    Args:
        path: the simulator's ``--record``.
        alive: whether the simulator still runs; looked at while we wait.
    """

    def __init__(self, path: Path, alive: Callable[[], bool]) -> None:
        self._path = path
        self._alive = alive
        self._offset = 0
        self._rest = b""
        self.lines: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """Return every line so far."""
        if self._path.exists():
            with self._path.open("rb") as record:
                record.seek(self._offset)
                new = record.read()
            self._offset += len(new)
            *whole, self._rest = (self._rest + new).split(b"\n")
            self.lines += [json.loads(line) for line in whole]
        return self.lines

    def since(self, wall: float, **facts: Any) -> list[dict[str, Any]]:
        """Return the lines from a time on that say these facts."""
        found = [line for line in self.read() if line["at"] >= wall]
        return [line for line in found if all(line.get(k) == v for k, v in facts.items())]

    def wait(self, done: Callable[["Record"], bool], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait until what it holds is enough; fails when it does not come."""
        give_up = time.monotonic() + timeout_s
        while not done(self):
            assert self._alive(), f"the simulator ended before: {what}"
            assert time.monotonic() < give_up, f"still not: {what}"
            time.sleep(LOOK_S)  # a file tells nobody that it grew
