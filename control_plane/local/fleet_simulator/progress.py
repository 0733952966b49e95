"""What a person sees while a fleet lives: a live table on a terminal, else a line at times."""

import sys
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from control_plane.local.fleet_simulator.run import counts
from control_plane.local.fleet_simulator.simulation import Simulation

LIVE_S = 0.5
LINE_S = 5.0


class Progress:
    """Shows the numbers of a running fleet from a thread of its own; a context manager.

    Args:
        simulation: the fleet.
        devices: how many there are.
    """

    def __init__(self, simulation: Simulation, devices: int) -> None:
        self._simulation = simulation
        self._devices = devices
        self._done = threading.Event()
        self._console = Console(file=sys.stderr)
        self._messages = 0
        self._at = time.monotonic()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _show(self) -> None:
        if not self._console.is_terminal:
            while not self._done.wait(LINE_S):
                print(self._line(), file=sys.stderr, flush=True)  # noqa: T201 - for people
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while not self._done.wait(LIVE_S):
                live.update(self._table(), refresh=True)

    def _numbers(self) -> dict[str, str]:
        found = counts(self._simulation)
        now = time.monotonic()
        rate = (found["messages"] - self._messages) / max(1e-3, now - self._at)
        self._messages, self._at = found["messages"], now
        return {
            "connected": f"{found['connected']}/{self._devices}",
            "in flight": str(found["in_flight"]),
            "confirmed": str(found["confirmed"]),
            "rolled back": str(found["rolled_back"]),
            "failed": str(found["failed"]),
            "reverted": str(found["reverted"]),
            "messages/s": f"{rate:.0f}",
        }

    def _line(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in self._numbers().items())

    def _table(self) -> Table:
        numbers = self._numbers()
        shown = Table(*numbers, box=None, pad_edge=False)
        shown.add_row(*numbers.values())
        return shown
