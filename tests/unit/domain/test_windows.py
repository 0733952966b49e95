"""Maintenance windows: wall times in a zone, over the changes of its clock."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain import windows
from control_plane.domain.windows import Opening, Window

VIENNA = "Europe/Vienna"  # 2026: forward on 29 March at 02:00, back on 25 October at 03:00


def _at(text: str, zone: str = VIENNA, *, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def _utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def _hours(opening: Opening) -> float:
    return (opening.closes_at - opening.opens_at) / 3600


NIGHTLY = Window("0 22 * * *", 6 * 3600, VIENNA)


@pytest.mark.parametrize(
    ("now", "opens", "is_open"),
    [
        ("2026-11-22 21:59:59", "2026-11-22 22:00", False),
        ("2026-11-22 22:00:00", "2026-11-22 22:00", True),
        ("2026-11-23 03:59:59", "2026-11-22 22:00", True),  # over midnight
        ("2026-11-23 04:00:00", "2026-11-23 22:00", False),
    ],
)
def test_a_window_holds_from_its_start_until_before_its_end(
    now: str, opens: str, *, is_open: bool
) -> None:
    found = windows.opening(NIGHTLY, _at(now))
    assert found.opens_at == _at(opens)
    assert _hours(found) == 6
    assert found.holds(_at(now)) is is_open


def test_a_cron_line_says_which_days() -> None:
    sundays = Window("30 1 * * SUN", 3600, VIENNA)
    assert windows.opening(sundays, _at("2026-11-22 03:00")).opens_at == _at("2026-11-29 01:30")
    last = Window("0 3 L * *", 3600, VIENNA)
    assert windows.opening(last, _at("2026-11-22 03:00")).opens_at == _at("2026-11-30 03:00")


def test_the_zone_decides_what_a_wall_time_means() -> None:
    for zone, utc in ((VIENNA, "2026-11-22 21:00"), ("Asia/Kolkata", "2026-11-22 16:30")):
        window = Window("0 22 * * *", 3600, zone)
        assert windows.opening(window, _utc("2026-11-22 12:00")).opens_at == _utc(utc)


def test_a_start_in_the_hour_that_spring_skips_comes_when_the_hour_is_over() -> None:
    window = Window("30 2 * * *", 3600, VIENNA)
    found = windows.opening(window, _at("2026-03-29 01:59"))
    assert found.opens_at == _utc("2026-03-29 01:00") == _at("2026-03-29 03:00")
    assert _hours(found) == 1
    inside = windows.opening(window, _at("2026-03-29 03:10"))
    assert inside == found
    assert windows.opening(window, found.closes_at).opens_at == _at("2026-03-30 02:30")


def test_a_start_in_the_hour_that_autumn_repeats_comes_once() -> None:
    window = Window("30 2 * * *", 1800, VIENNA)
    first = _at("2026-10-25 02:30", fold=0)
    assert windows.opening(window, _at("2026-10-25 02:10", fold=0)).opens_at == first
    again = windows.opening(window, _at("2026-10-25 02:10", fold=1))
    assert again.opens_at == _at("2026-10-26 02:30")
    assert not again.holds(_at("2026-10-25 02:40", fold=1))


def test_every_hour_means_every_hour_that_happens() -> None:
    hourly = Window("0 * * * *", 900, VIENNA)
    for fold in (0, 1):
        at = _at("2026-10-25 02:05", fold=fold)
        found = windows.opening(hourly, at)
        assert found.holds(at)
        assert found.opens_at == at - 300


@pytest.mark.parametrize("day", ["2026-03-28", "2026-10-24"])
def test_a_window_over_a_change_of_the_clock_lasts_as_long_as_it_says(day: str) -> None:
    found = windows.opening(NIGHTLY, _at(f"{day} 23:00"))
    assert found.opens_at == _at(f"{day} 22:00")
    assert _hours(found) == 6


def test_windows_without_a_gap_between_them_are_one() -> None:
    whole_days = Window("0 0 * * MON-FRI", 86400, "UTC")
    found = windows.opening(whole_days, _utc("2026-11-25 12:00"))  # a Wednesday
    assert found.holds(_utc("2026-11-27 23:59:59"))
    assert found.closes_at == _utc("2026-11-28 00:00")


@pytest.mark.parametrize(
    ("window", "field"),
    [
        (Window("0 2 * * *", 3600, "Mars/Olympus"), "timezone"),
        (Window("0 2 * * *", 3600, ""), "timezone"),
        (Window("0 2 * *", 3600), "cron"),
        (Window("0 2 30 2 *", 3600), "cron"),
        (Window("0 0 29 2 MON#5", 3600), ""),
        (Window("61 * * * *", 3600), "cron"),
        (NIGHTLY, ""),
    ],
)
def test_a_bad_window_is_told_with_its_field(window: Window, field: str) -> None:
    found = windows.problem(window)
    assert (found[0] if found else "") == field


CRONS = st.sampled_from(["30 2 * * *", "0 * * * *", "*/20 1-3 * * *", "15 3 * * SUN", "0 0 1 * *"])
ZONES = st.sampled_from([VIENNA, "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])
# Around both changes of the clock, on both halves of the world, and at any other time.
MINUTES = st.integers(0, 60 * 24 * 400)


@given(CRONS, ZONES, MINUTES, st.sampled_from([600.0, 5400.0, 30000.0]))
def test_what_is_told_of_a_window_stays_true_until_it_opens_or_closes(
    cron: str, zone: str, minutes: int, duration: float
) -> None:
    now = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)).timestamp()
    window = Window(cron, duration, zone)
    found = windows.opening(window, now)
    assert found.closes_at - found.opens_at >= duration
    if not found.holds(now):
        assert found.opens_at > now
        assert windows.opening(window, found.opens_at - 1) == found
        middle = (now + found.opens_at) / 2
        assert not windows.opening(window, middle).holds(middle)
    later = windows.opening(window, max(now, found.opens_at))
    assert later.holds(max(now, found.opens_at))
