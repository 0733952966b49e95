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


def test_what_was_offered_a_minute_ago_counts_no_more() -> None:
    lots = pace.noted((), 100.0, 3)
    assert pace.recent(lots, 159.9) == ((100.0, 3),)
    assert pace.recent(lots, 160.0) == ()


def test_a_clock_that_goes_back_forgets_nothing() -> None:
    lots = pace.noted(pace.noted((), 100.0, 3), 40.0, 2)
    assert lots == ((100.0, 5),)
    assert pace.recent(lots, 159.9) == lots


waits = st.floats(0, 90, allow_nan=False)


@given(st.integers(1, 20), st.lists(st.tuples(waits, st.integers(0, 20)), max_size=60))
def test_no_minute_holds_more_than_the_pace_and_the_lots_stay_few(
    limit: int, turns: list[tuple[float, int]]
) -> None:
    now, made = 1_000.0, list[tuple[float, int]]()
    lots: pace.Offered = ()
    for wait, wanted in turns:
        now += wait
        free = limit - sum(n for _, n in pace.recent(lots, now))
        n = min(wanted, free)
        if n > 0:
            lots = pace.noted(lots, now, n)
            made.append((now, n))
        assert len(lots) <= pace.MINUTE_S / pace.LOT_S + 1
        assert sum(m for at, m in made if at > now - pace.MINUTE_S) <= limit
        if not any(at > now - pace.MINUTE_S - pace.LOT_S for at, _ in made):
            assert free == limit, "nothing is held back for long"
