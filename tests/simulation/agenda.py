"""Simulated time: what is to happen when, one thing after another."""

import heapq
from collections.abc import Callable
from datetime import UTC, datetime

from tests.simulation.errors import ViolationError

MOST_STEPS = 50_000
"""A seed takes some hundreds; one that takes so many goes round in a ring."""
START = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


class Agenda:
    """The only clock of a simulation, in Unix seconds, and the queue of what happens next."""

    def __init__(self) -> None:
        self.now = START
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.steps = 0

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Let something happen in `seconds` from now."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + seconds, self._count, act))

    def next_at(self) -> float | None:
        """Return when the next thing happens."""
        return self._queue[0][0] if self._queue else None

    def step(self) -> None:
        """Go to the next thing and let it happen."""
        at, _, act = heapq.heappop(self._queue)
        self.now = max(self.now, at)
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise ViolationError("liveness: spins", f"{MOST_STEPS} steps")
        act()

    @property
    def date(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)
