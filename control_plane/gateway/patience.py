"""Whom an inbox that lags asks to be patient: devices that come back in a storm."""

import uuid
from collections.abc import Iterable

from agent.protocol import messages, topics
from agent.protocol.errors import UnknownTopicError
from agent.protocol.messages import BackOff
from agent.protocol.topics import DeviceId

LAG_S = 2.0
"""Nothing but full batches for so long: more comes than goes."""
FIRST_ASK_S = 30
MOST_ASK_S = 600
PER_LAG = 10
"""Seconds asked for, for each second of lag: what piled up must go before they are back."""
VALID_S = 60
"""A command that a slow line delivers even later is about a lag of long ago."""


class Patience:
    """Watches the batches of one inbox; holds no connection and reads no clock."""

    def __init__(self) -> None:
        self._full_since: float | None = None
        self.asked = 0

    def note(self, *, full: bool, now: float) -> int:
        """Note a batch at a steady time; return for how many seconds to ask, 0 for no need."""
        if not full:
            self._full_since = None
            return 0
        if self._full_since is None:
            self._full_since = now
        lag = now - self._full_since
        return 0 if lag < LAG_S else min(MOST_ASK_S, max(FIRST_ASK_S, int(PER_LAG * lag)))


def arrivals(names: Iterable[str]) -> set[DeviceId]:
    """Return the devices that said hello, from the topics of a batch."""
    found: set[DeviceId] = set()
    for name in names:
        if name.endswith("/up/hello"):
            try:
                found.add(topics.parse(name).device)
            except UnknownTopicError:
                continue
    return found


def command(seconds: int, wall: float) -> bytes:
    """Return the command that asks for so many seconds."""
    asked = BackOff(id=uuid.uuid4().hex, expires=int(wall) + VALID_S, seconds=seconds)
    return messages.encode(asked)
