"""PURE: random numbers that depend on the seed, the device and what is drawn, and on no order."""

import hashlib
import math
from collections.abc import Mapping
from statistics import NormalDist

_NORMAL = NormalDist()
_SCALE = 2.0**-53


class Draws:
    """The draws of one device; the same question always has the same answer.

    Args:
        seed: of the whole fleet.
        name: the device.
    """

    __slots__ = ("_key",)

    def __init__(self, seed: int, name: str) -> None:
        self._key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()

    def uniform(self, *what: object) -> float:
        """Return a number in [0, 1)."""
        asked = "/".join(map(str, what)).encode()
        digest = hashlib.blake2b(asked, digest_size=8, key=self._key).digest()
        return (int.from_bytes(digest, "big") >> 11) * _SCALE

    def happens(self, share: float, *what: object) -> bool:
        """Return whether something of probability `share` happens."""
        return share > 0 and self.uniform(*what) < share

    def normal(self, *what: object) -> float:
        """Return a standard normal number."""
        return _NORMAL.inv_cdf(min(1 - _SCALE, self.uniform(*what) + _SCALE / 2))

    def lognormal(self, median: float, spread: float, *what: object) -> float:
        """Return a lognormal number; `spread` is e to the standard deviation, 1 for none."""
        if spread <= 1 or median <= 0:
            return median
        return median * math.exp(math.log(spread) * self.normal(*what))

    def choice(self, shares: Mapping[str, float], *what: object) -> str:
        """Return one of the names by their weights; empty if there are none."""
        left = self.uniform(*what) * sum(shares.values())
        name = ""
        for name, weight in shares.items():  # noqa: B007 - the last one catches rounding
            left -= weight
            if left < 0:
                break
        return name
