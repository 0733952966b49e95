"""Confidence sequences: intervals that may be looked at after every device; pure.

An interval for a fixed number of devices errs more often the more often it is looked at. A
confidence sequence misses the truth *at any look, ever* with at most probability `error`
(Darling and Robbins 1967), so that a gate may judge on every report and stop when it likes.

Both sequences here follow one recipe. For each value that the truth may have, a mixture of
likelihood ratios against that value is a bet that cannot gain on average if the value is true: a
nonnegative martingale M that starts at 1. By Ville's inequality (1939) it ever reaches 1 / error
with at most probability `error`. The values whose bet has not got there are the sequence.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

PRIOR = 0.25
"""c^2 of the bet on a mean: an effect of 1 / c = 2 device spreads, tight from 5 to 50 devices."""
JEFFREYS = 0.5
"""Both parameters of the bet on a share: Jeffreys' prior, tight where failures are rare."""
_STEPS = 60


class Bounds(NamedTuple):
    """An interval; unbounded where there are too few numbers."""

    low: float
    high: float


def mean(n: int, total: float, squares: float, error: float) -> Bounds:
    """Return the two-sided confidence sequence of a mean, of unknown variance.

    The t-test's martingale with a Gaussian bet on the effect size: Wang and Ramdas,
    "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance"
    (arXiv:2310.03722, 2024), section 4; Lai (1976) had a flat bet. With S = sum(x - m) and
    V = sum((x - m)^2):

        M_n(m) = sqrt(c^2 / (n + c^2)) * (1 - S^2 / ((n + c^2) * V)) ** (-n / 2)

    which is the right-Haar mixture over the standard deviation and N(0, 1 / c^2) over
    (mean - m) / deviation. Solved for m, with q = (error * sqrt(c^2 / (n + c^2))) ** (2 / n) and
    R = (1 - q) * (n + c^2) / n, the interval is: average +- deviation * sqrt(R / (1 - R)).

    Assumes numbers drawn independently from one normal law, in an order that does not depend on
    them. Numbers of unlike variance, and symmetric ones with long tails, make it wider than it
    need be (Benjamini 1983).

    Args:
        n: how many numbers.
        total: their sum.
        squares: the sum of their squares.
        error: how often it may miss, over all looks.
    """
    if n < 1:
        return Bounds(-math.inf, math.inf)
    average = total / n
    variance = max(0.0, squares / n - average * average)
    log_q = 2 / n * math.log(error * math.sqrt(PRIOR / (n + PRIOR)))
    r = -math.expm1(log_q) * (n + PRIOR) / n
    if r >= 1:
        return Bounds(-math.inf, math.inf)
    reach = math.sqrt(variance * r / (1 - r))
    return Bounds(average - reach, average + reach)


def share(hits: int, n: int, error: float) -> Bounds:
    """Return the two-sided confidence sequence of a probability, from counts alone.

    The beta-binomial mixture: Robbins 1970; Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform,
    nonparametric, nonasymptotic confidence sequences" (Annals of Statistics 2021), section 3.2:

        M_n(p) = B(a + hits, b + misses) / B(a, b) / (p ** hits * (1 - p) ** misses)

    Exact at every n. Assumes that each device fails independently, with the same probability.

    Args:
        hits: how many did.
        n: of how many.
        error: how often it may miss, over all looks.
    """
    if n < 1:
        return Bounds(0.0, 1.0)
    misses = n - hits
    enough = _log_beta(JEFFREYS + hits, JEFFREYS + misses) - _log_beta(JEFFREYS, JEFFREYS)
    enough += math.log(error)

    def doubtful(p: float) -> bool:
        """Return whether the bet against p has won."""
        return enough >= hits * math.log(p) + misses * math.log1p(-p)

    centre = hits / n
    low = _edge(doubtful, 0.0, centre) if hits else 0.0
    high = _edge(doubtful, 1.0, centre) if misses else 1.0
    return Bounds(low, high)


def _edge(doubtful: Callable[[float], bool], outside: float, inside: float) -> float:
    """Return where doubt ends between a value that is doubtful and one that is not."""
    for _ in range(_STEPS):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if doubtful(middle) else (outside, middle)
    return outside


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
