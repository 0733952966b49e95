"""Kills at random: who, when, how many at once and for how long, all drawn from one seed."""

import math
import threading
import time
from collections import Counter
from random import Random

from control_plane.gateway.relay import LEASE_S
from tests.chaos.cast import KINDS, Cast

WEIGHTS = {
    "gateway": 5,
    "worker": 5,
    "scheduler": 3,
    "database": 3,
    "broker": 2,
    "queue": 2,
}
PAUSE_S = 0.35
"""Between two blows, in the mean."""
DOWN_S = 0.5
"""At most, before what was killed is started again."""
FREEZE_SHARE = 0.12
"""Of blows that stop somebody for a while instead."""
FREEZE_S = 1.0
LONG_FREEZE_SHARE = 0.2
"""Of those, where they may be long and hit a gateway: it wakes up when others have its work."""
LONG_FREEZE_S = LEASE_S + 2.0
TOGETHER_SHARE = 0.15
"""Of blows that hit two kinds at the same moment."""


class Killer:
    """A thread that kills, and starts again what it killed.

    Args:
        cast: whom.
        seed: of every choice; moments are real time, so the same seed is a similar story.
        budget: kills in all.
        first: the first blows hit each kind in turn, and nobody is stopped for long.
    """

    def __init__(self, cast: Cast, seed: str, budget: int, *, first: bool = False) -> None:
        self.kills: Counter[str] = Counter()
        self.frozen: Counter[str] = Counter()
        self._cast = cast
        self._chance = Random(seed)
        self._budget = budget
        self._first = first
        self._next = list(KINDS) if first else []
        self._asleep: list[tuple[float, int]] = []
        """When to wake whom."""
        self._chance.shuffle(self._next)
        self._stop = threading.Event()
        self._failure: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    @property
    def done(self) -> bool:
        """Whether it has killed as many as it may."""
        return sum(self.kills.values()) >= self._budget or not self._thread.is_alive()

    @property
    def owes(self) -> bool:
        """Whether a kind that it was to hit first is still to be hit."""
        return bool(self._next) and not self.done

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End it, with everybody alive again."""
        self._stop.set()
        self._thread.join()
        self._wake(math.inf)
        if self._failure:
            raise RuntimeError("the killer itself failed") from self._failure[0]

    def _run(self) -> None:
        try:
            while sum(self.kills.values()) < self._budget and not self._stop.is_set():
                self._wake(time.monotonic())
                self._strike()
                self._stop.wait(self._chance.expovariate(1 / PAUSE_S))
        except BaseException as error:  # noqa: BLE001 - told when it is stopped
            self._failure.append(error)

    def _strike(self) -> None:
        chance, cast = self._chance, self._cast
        kinds = [self._next.pop() if self._next else _kind(chance)]
        cast.count_ended()
        if not self._next and chance.random() < FREEZE_SHARE:
            self._freeze(kinds[0])
            return
        if chance.random() < TOGETHER_SHARE:
            kinds.append(_kind(chance))
        for kind in dict.fromkeys(kinds):
            self.kills[kind] += 1
            for victim in cast.victims(kind, chance):
                cast.kill(victim)
        self._stop.wait(DOWN_S * chance.random())
        cast.revive()

    def _freeze(self, kind: str) -> None:
        chance, cast = self._chance, self._cast
        pid = cast.freeze(chance.choice(cast.victims(kind, chance)))
        self.frozen[kind] += 1
        if kind == "gateway" and not self._first and chance.random() < LONG_FREEZE_SHARE:
            self._asleep.append((time.monotonic() + LONG_FREEZE_S, pid))
        else:
            self._stop.wait(FREEZE_S * chance.random())
            cast.thaw(pid)
        cast.revive()

    def _wake(self, now: float) -> None:
        for _, pid in (one for one in self._asleep if one[0] <= now):
            self._cast.thaw(pid)
        self._asleep = [one for one in self._asleep if one[0] > now]


def _kind(chance: Random) -> str:
    return chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
