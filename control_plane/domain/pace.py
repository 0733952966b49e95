"""How many devices may be offered it now: in flight, a minute, and growth with success; pure."""

import math

from control_plane.domain.rollout import Pace


def per_minute(pace: Pace, successes: int) -> int:
    """Return how many offers a minute the pace allows after so many successes."""
    growth = pace.growth
    if growth is None:
        return pace.per_minute
    times = max(0, successes) // growth.every
    if times * math.log(growth.factor) >= math.log(growth.limit / pace.per_minute):
        return growth.limit
    return min(growth.limit, int(pace.per_minute * growth.factor**times))


def room(pace: Pace, *, in_flight: int, offered: int, successes: int) -> int:
    """Return how many more may be offered it; never below 0.

    Args:
        pace: of the newest open wave.
        in_flight: devices between offer and answer, of all waves.
        offered: offers within the running minute.
        successes: what a growing pace grows with.
    """
    left = per_minute(pace, successes) - offered
    return max(0, min(pace.max_in_flight - in_flight, left))
