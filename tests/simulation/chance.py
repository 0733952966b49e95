"""One seed decides everything: named streams of random numbers, and faults that can be left out."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

FAULTS = (
    "loss",
    "duplicate",
    "delay",
    "offline",
    "device_kill",
    "disk",
    "gateway_kill",
    "scheduler_kill",
    "outage",
    "broker_crash",
    "broker_forgets",
    "bad_trial",
    "bad_probe",
    "bad_download",
    "quarantine",
    "people",
)
"""What can be left out, one by one, to find the shortest trace of a violation."""


class Chance:
    """The draws of one seed.

    Each use has a stream of its own, so that leaving one kind of fault out changes little else.

    Args:
        seed: decides every draw.
        off: faults that never happen.
    """

    def __init__(self, seed: int, off: frozenset[str] = frozenset()) -> None:
        self.seed = seed
        self._off = off
        self._streams: dict[str, random.Random] = {}
        self.rates: dict[str, float] = {}
        self.calm = False
        """No fault happens any more: what is left must come to an end by itself."""

    def stream(self, name: str) -> random.Random:
        """Return the stream of one use."""
        found = self._streams.get(name)
        if found is None:
            # A text seeds through SHA-512, whatever PYTHONHASHSEED says.
            found = self._streams[name] = random.Random(f"{self.seed}/{name}")
        return found

    def set_rates(self, rates: dict[str, float]) -> None:
        """Say how often each fault happens, as a share of its occasions."""
        self.rates = {name: rate for name, rate in rates.items() if name not in self._off}

    def happens(self, fault: str) -> bool:
        """Draw whether a fault happens on this occasion."""
        rate = self.rates.get(fault, 0.0)
        return not self.calm and rate > 0.0 and self.stream(fault).random() < rate

    def allowed(self, fault: str) -> bool:
        """Return whether this kind of fault belongs to this seed at all."""
        return self.rates.get(fault, 0.0) > 0.0

    def between(self, name: str, low: float, high: float) -> float:
        """Draw a number."""
        return low + (high - low) * self.stream(name).random()

    def pick(self, name: str, of: Sequence[T]) -> T:
        """Draw one of several."""
        return of[int(self.stream(name).random() * len(of))]
