"""Confidence sequences: right by an independent computation, and right as often as they say."""

import math
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import stdtrit
from scipy.stats import beta, binom, nct, t

from control_plane.domain import sequential
from control_plane.domain.measured import Measured, interval

LOOKS = 50
RUNS = 1000


def _sums(values: list[float]) -> tuple[int, float, float]:
    return len(values), sum(values), sum(value * value for value in values)


def test_the_mean_is_where_the_bet_on_the_effect_size_has_won() -> None:
    # At a bound, the mixture of noncentral over central t densities is 1 / error.
    values = [0.3, 0.1, -0.2, 0.5, 0.4, 0.35, 0.22]
    n, error = len(values), 0.05
    for edge in sequential.mean(*_sums(values), error):
        shifted = [value - edge for value in values]
        average = sum(shifted) / n
        deviation = math.sqrt(sum((x - average) ** 2 for x in shifted) / (n - 1))
        statistic = average / deviation * math.sqrt(n)

        def bet(effect: float, statistic: float = statistic) -> float:
            prior = math.sqrt(sequential.PRIOR / (2 * math.pi))
            weight = prior * math.exp(-sequential.PRIOR * effect**2 / 2)
            return weight * float(nct.pdf(statistic, n - 1, effect * math.sqrt(n)))

        won = quad(bet, -12, 12, limit=400, points=[0.0, math.copysign(1.5, statistic)])[0]
        assert won / t.pdf(statistic, n - 1) == pytest.approx(1 / error, rel=1e-3)


@settings(max_examples=50)
@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.05, 0.01, 0.001]))
def test_a_share_is_doubted_exactly_where_the_mixture_has_won(
    hits: int, misses: int, error: float
) -> None:
    low, high = sequential.share(hits, hits + misses, error)
    assert 0 <= low <= high <= 1
    if not hits + misses:
        assert (low, high) == (0, 1)
        return
    assert low <= hits / (hits + misses) <= high

    def bet(p: float) -> float:
        def against(q: float) -> float:
            ratio = hits * (math.log(q) - math.log(p))
            ratio += misses * (math.log1p(-q) - math.log1p(-p))
            return math.exp(ratio) * float(beta.pdf(q, 0.5, 0.5))

        return float(quad(against, 0, 1, limit=200)[0])

    for edge in (low, high):
        if 1e-6 < edge < 1 - 1e-6:
            assert bet(edge) == pytest.approx(1 / error, rel=0.02)


@given(
    st.lists(st.floats(-1, 1), min_size=5, max_size=30),
    st.floats(-3, 3),
    st.floats(0.1, 10),
)
def test_a_mean_moves_with_its_numbers(values: list[float], shift: float, scale: float) -> None:
    low, high = sequential.mean(*_sums(values), 0.05)
    moved = sequential.mean(*_sums([shift + scale * value for value in values]), 0.05)
    assert moved.low == pytest.approx(shift + scale * low, abs=1e-5)
    assert moved.high == pytest.approx(shift + scale * high, abs=1e-5)


def test_too_few_numbers_bound_nothing_and_many_bound_tightly() -> None:
    assert sequential.mean(0, 0.0, 0.0, 0.05) == (-math.inf, math.inf)
    assert sequential.mean(3, 0.3, 0.04, 0.05) == (-math.inf, math.inf)
    widths = [sequential.mean(n, 0.0, float(n), 0.01).high for n in (10, 100, 10_000, 1_000_000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.01


def _normal(draw: random.Random) -> Iterator[float]:
    while True:
        yield draw.gauss(0, 1)


def _unlike(draw: random.Random) -> Iterator[float]:
    """Every device has noise of its own, some twenty times that of others."""
    while True:
        yield draw.gauss(0, math.exp(draw.uniform(-1.5, 1.5)))


def _ever(runs: int, misses: Callable[[random.Random], bool]) -> int:
    return sum(misses(random.Random(seed)) for seed in range(runs))


def _doubts(missed: int, runs: int, error: float) -> bool:
    """Return whether this many misses disprove `error`: chance is less than one in a million."""
    return bool(binom.sf(missed - 1, runs, error) < 1e-6)


def _peeks(numbers: Iterator[float], high_of: Callable[[int, float, float], float]) -> bool:
    """Look after every number, from the fifth on: is the truth, 0, ever above the bound?"""
    total = squares = 0.0
    for n in range(1, LOOKS + 1):
        value = next(numbers)
        total, squares = total + value, squares + value * value
        if n >= 5 and high_of(n, total, squares) < 0:
            return True
    return False


def _sequential(n: int, total: float, squares: float) -> float:
    return sequential.mean(n, total, squares, 0.05).high


def _fixed(n: int, total: float, squares: float) -> float:
    """Student's bound, which is right at one look that was planned."""
    variance = (squares - total * total / n) / (n - 1)
    return float(total / n + stdtrit(n - 1, 0.95) * math.sqrt(variance / n))


@pytest.mark.parametrize("numbers", [_normal, _unlike])
def test_looking_after_every_device_does_not_make_a_mean_err_more_often(
    numbers: Callable[[random.Random], Iterator[float]],
) -> None:
    missed = _ever(RUNS, lambda draw: _peeks(numbers(draw), _sequential))
    assert not _doubts(missed, RUNS, 0.05)


def test_the_same_looks_ruin_a_bound_for_a_fixed_number_of_devices() -> None:
    missed = _ever(RUNS, lambda draw: _peeks(_normal(draw), _fixed))
    assert _doubts(missed, RUNS, 0.05)


def _least_hits(low_of: Callable[[int, int], float], looks: int) -> list[int]:
    """Return, for each look, from how many failures on a tenth is doubted."""
    least = [1]
    for n in range(1, looks + 1):
        hits = least[-1]
        while hits <= n and low_of(hits, n) <= 0.1:
            hits += 1
        least.append(hits)
    return least


def _share_misses(draw: random.Random, least: list[int]) -> bool:
    hits = 0
    for n in range(1, len(least)):
        hits += draw.random() < 0.1
        if hits >= least[n]:
            return True
    return False


def test_looking_after_every_device_does_not_make_a_share_err_more_often() -> None:
    runs, error = 4000, 0.01
    ours = _least_hits(lambda hits, n: sequential.share(hits, n, error).low, 300)
    assert not _doubts(_ever(runs, lambda draw: _share_misses(draw, ours)), runs, error)
    # The exact bound of Clopper and Pearson is right at one look that was planned.
    naive = _least_hits(lambda hits, n: float(beta.ppf(error, hits, n - hits + 1)), 300)
    assert _doubts(_ever(runs, lambda draw: _share_misses(draw, naive)), runs, error)


def test_few_devices_upper_bounds_err_no_more_often_than_they_say() -> None:
    def ever_below(draw: random.Random) -> bool:
        whole = Measured()
        for _ in range(4):
            error = math.exp(draw.uniform(-1, 1)) / 10
            value = draw.gauss(0, error)
            whole = whole.merged(Measured(1, value, value * value, error * error))
            if interval(whole)[2] < 1:
                return True
        return False

    missed = _ever(4000, ever_below)
    assert not _doubts(missed, 4000, 0.063)
    assert missed > 0.03 * 4000, "far from the bound: it could be tighter"
