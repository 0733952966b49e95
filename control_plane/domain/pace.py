"""How many devices may be offered it now: in flight, a minute, and growth with success; pure.

A minute is any minute, not one of the clock: what was offered in the last sixty seconds is kept,
in lots of a few seconds, each as if all of it had been offered at the lot's end.
"""

import math

from control_plane.domain.rollout import Pace

MINUTE_S = 60.0
LOT_S = 5.0

Offered = tuple[tuple[float, int], ...]
"""Lots of offers, the oldest first: when the last of it was made, in Unix seconds, and how many."""


def per_minute(pace: Pace, successes: int) -> int:
    """Return how many offers a minute the pace allows after so many successes."""
    growth = pace.growth
    if growth is None:
        return pace.per_minute
    times = max(0, successes) // growth.every
    if times * math.log(growth.factor) >= math.log(growth.limit / pace.per_minute):
        return growth.limit
    return min(growth.limit, int(pace.per_minute * growth.factor**times))


def recent(offered: Offered, now: float) -> Offered:
    """Return the lots that count now; at most `MINUTE_S / LOT_S` and one more."""
    return tuple((at, n) for at, n in offered if at > now - MINUTE_S)


def noted(offered: Offered, now: float, n: int) -> Offered:
    """Return the lots with n offers of now among them."""
    kept = recent(offered, now)
    if kept and now // LOT_S <= kept[-1][0] // LOT_S:
        at, before = kept[-1]
        return (*kept[:-1], (max(at, now), before + n))
    return (*kept, (now, n))


def room(pace: Pace, *, in_flight: int, offered: int, successes: int) -> int:
    """Return how many more may be offered it; never below 0.

    Args:
        pace: of the newest open wave.
        in_flight: devices between offer and answer, of all waves.
        offered: offers within the last minute.
        successes: what a growing pace grows with.
    """
    left = per_minute(pace, successes) - offered
    return max(0, min(pace.max_in_flight - in_flight, left))
