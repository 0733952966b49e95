"""How fast a rollout may go, and how it grows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain import pace
from control_plane.domain.rollout import Growth, Pace

GROWING = Pace(max_in_flight=50, per_minute=10, growth=Growth(1.5, 20, 100))


@pytest.mark.parametrize(
    ("successes", "rate"),
    [
        (0, 10),
        (19, 10),
        (20, 15),
        (39, 15),
        (40, 22),
        (60, 33),
        (100, 75),
        (120, 100),
        (10**9, 100),
    ],
)
def test_after_each_so_many_successes_the_rate_is_multiplied(successes: int, rate: int) -> None:
    assert pace.per_minute(GROWING, successes) == rate


def test_a_plain_pace_stays_as_it_is() -> None:
    assert pace.per_minute(Pace(per_minute=7), 10**9) == 7


def test_growth_changes_offers_a_minute_and_never_the_number_in_flight() -> None:
    assert pace.room(GROWING, in_flight=49, offered=0, successes=10**6) == 1


growths = st.builds(
    Growth, st.floats(1.0000001, 100), st.integers(1, 1000), st.integers(1000, 10**9)
)


@given(growths, st.integers(1, 1000), st.integers(0, 10**9), st.integers(0, 10**6))
def test_a_growing_rate_never_falls_nor_exceeds_its_limit(
    growth: Growth, start: int, successes: int, more: int
) -> None:
    growing = Pace(10, start, growth)
    before, after = (pace.per_minute(growing, n) for n in (successes, successes + more))
    assert start <= before <= after <= growth.limit


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_room_is_never_negative_and_never_more_than_is_left(
    in_flight: int, offered: int, successes: int
) -> None:
    left = pace.room(GROWING, in_flight=in_flight, offered=offered, successes=successes)
    assert left >= 0
    assert in_flight + left <= max(in_flight, GROWING.max_in_flight)
    assert offered + left <= max(offered, pace.per_minute(GROWING, successes))
