"""When a maintenance window is open: cron, duration and IANA zone in, absolute times out; pure.

The zone's own rules decide what a wall time means, as in Debian's cron: a window that would start
in the hour that a spring change skips starts when that hour is over; one in the hour that an
autumn change repeats starts once. `*` in the minute or the hour means every one that happens. A
duration is elapsed time, so that a window of 4 h lasts 4 h on those days too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

FIELDS = 5
"""Minute, hour, day of the month, month, day of the week."""
MIN_DURATION_S = 60.0
MAX_MERGED = 64
"""Windows that follow each other without a gap are told as one, up to this many."""
_MARGIN = timedelta(hours=3)
"""So near to a change of the clock a wall time may be misread; no zone moves by more today."""


@dataclass(frozen=True)
class Window:
    """A start that comes again, as a cron line says, in a zone; and how long it then is open."""

    cron: str
    duration_s: float
    timezone: str = "UTC"


@dataclass(frozen=True)
class Opening:
    """One time that a window is open, in Unix seconds: from `opens_at` until before `closes_at`."""

    opens_at: float
    closes_at: float

    def holds(self, now: float) -> bool:
        """Return whether it is open now."""
        return self.opens_at <= now < self.closes_at


def problem(window: Window) -> tuple[str, str] | None:
    """Return the wrong field and what is wrong with it; None: the window is good."""
    try:
        ZoneInfo(window.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return (
            "timezone",
            f"no IANA time zone is {window.timezone!r}; one is Europe/Vienna",
        )
    if len(window.cron.split()) != FIELDS:
        return "cron", "a cron line has five fields: minute hour day-of-month month day-of-week"
    try:
        first = next(CronSim(window.cron, datetime(2000, 1, 1, tzinfo=UTC)), None)
    except CronSimError as error:
        return "cron", f"{error} in {window.cron!r}"
    if first is None:
        return "cron", f"{window.cron!r} never comes"
    return None


def opening(window: Window, now: float) -> Opening:
    """Return the opening that holds now, else the next one.

    Raises:
        ValueError: the cron line or the zone is not one that `problem` would pass.
    """
    start = _latest(window, now)
    coming = _coming(window, now)
    if start is None or now >= start + window.duration_s:
        start = next(coming)
    closes_at = start + window.duration_s
    for _, following in zip(range(MAX_MERGED), coming, strict=False):
        if following > closes_at:
            break
        closes_at = following + window.duration_s
    return Opening(start, closes_at)


def _latest(window: Window, now: float) -> float | None:
    """Return the last start that is not after now."""
    zone = ZoneInfo(window.timezone)
    around = datetime.fromtimestamp(now, zone) + _MARGIN
    for start in CronSim(window.cron, around, reverse=True):
        at = start.timestamp()
        if at <= now:
            return at
    return None


def _coming(window: Window, now: float) -> Iterator[float]:
    """Yield the starts after now."""
    zone = ZoneInfo(window.timezone)
    around = datetime.fromtimestamp(now, zone) - _MARGIN
    last = now
    for start in CronSim(window.cron, around):
        at = start.timestamp()
        if at > last:
            last = at
            yield at
