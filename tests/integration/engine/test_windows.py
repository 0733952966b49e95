"""When a rollout may offer, and when a device may begin."""

from datetime import datetime, timedelta
from typing import Any

from msgspec import UNSET

from agent.protocol.messages import ActivationWindow
from agent.protocol.words import Action, ExecutionState, Reason
from tests.integration.engine.conftest import START, Fleet

E = ExecutionState
ALL = [{"name": "all", "percent": 100}]
HOUR = 3600.0
AT_NOON = START.hour  # the fleet's clock begins at 12:00 UTC


# --- download windows -------------------------------------------------------------------------


def _daily(hour: int, duration: str = "2h") -> dict[str, Any]:
    return {"cron": f"0 {hour} * * *", "duration": duration, "timezone": "UTC"}


def test_offers_are_made_only_inside_the_download_window(fleet: Fleet) -> None:
    windows = {"download": _daily(AT_NOON, "1h")}
    name = fleet.start("1.1.0", waves=ALL, windows=windows, pace={"max_in_flight": 1})
    fleet.succeed(name, fleet.in_state(name, E.OFFERED)[0])
    fleet.tick()
    fleet.later(HOUR)  # the window is over, to the second
    fleet.succeed(name, fleet.in_state(name, E.OFFERED)[0])
    assert fleet.tick().offered == 0
    assert "opens at 2026-11-22 12:00 UTC" in fleet.rules(name)["window"]
    assert fleet.decisions(name)[0].kind == "hold"
    fleet.later(23 * HOUR - 1)
    assert fleet.tick().offered == 0
    fleet.later(1)
    assert fleet.tick().offered == 1


def test_a_rollout_that_starts_outside_its_window_waits_for_it(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", waves=ALL, windows={"download": _daily(AT_NOON + 1)})
    assert fleet.view(name).state == "SCHEDULED"
    assert "download window" in fleet.explain(name).headline
    fleet.later(HOUR)
    assert fleet.tick().offered > 0
    fleet.check_replay(name)


def test_no_wave_opens_outside_the_window_though_people_want_it(fleet: Fleet) -> None:
    waves = [{"name": "canary", "count": 1}, {**ALL[0], "approval": "required"}]
    name = fleet.start("1.1.0", waves=waves, windows={"download": _daily(AT_NOON, "1h")})
    fleet.succeed(name, fleet.in_state(name, E.OFFERED)[0])
    fleet.tick()
    fleet.later(HOUR)
    assert fleet.do_as("ann", "approve", name).state == "RUNNING"
    fleet.tick()
    assert [wave.state for wave in fleet.view(name).waves] == ["open", "planned"]
    fleet.later(23 * HOUR)
    assert fleet.tick().offered == 11


# --- activation windows -----------------------------------------------------------------------


def _window(fleet: Fleet, device: str) -> tuple[datetime, datetime]:
    told = fleet.order(device).activate
    assert isinstance(told, ActivationWindow)
    day = START.replace(hour=0)
    since = [timedelta(seconds=at - day.timestamp()) for at in (told.not_before, told.not_after)]
    return day + since[0], day + since[1]


def test_an_order_names_the_next_activation_window(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", waves=ALL, windows={"activate": _daily(AT_NOON + 4)})
    device = fleet.in_state(name, E.OFFERED)[0]
    four = START + timedelta(hours=4)
    assert _window(fleet, device) == (four, four + timedelta(hours=2))


def test_in_an_open_window_the_order_begins_at_its_issue(fleet: Fleet) -> None:
    """A device whose clock is behind must not think that it is still early in the window."""
    fleet.later(600)
    name = fleet.start("1.1.0", waves=ALL, windows={"activate": _daily(AT_NOON)})
    device = fleet.in_state(name, E.OFFERED)[0]
    assert _window(fleet, device) == (fleet.now, START + timedelta(hours=2))


def test_without_activation_windows_an_order_is_as_it_always_was(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", waves=ALL)
    assert fleet.order(fleet.in_state(name, E.OFFERED)[0]).activate is UNSET


def _staged(fleet: Fleet, **spec: Any) -> tuple[str, str]:
    """Return a rollout whose one device is staged four hours before its window."""
    waves = [{"name": "one", "count": 1}, *ALL]
    windows = {"activate": _daily(AT_NOON + 4)}
    name = fleet.start("1.1.0", waves=waves, windows=windows, **spec)
    device = fleet.in_state(name, E.OFFERED)[0]
    fleet.report(name, device, E.DOWNLOADING)
    fleet.report(name, device, E.STAGED)
    return name, device


def test_waiting_for_the_window_is_neither_silence_nor_delay(fleet: Fleet) -> None:
    limits = {"silent": "30m", "execution": "1h", "steps": {"staged": "30m"}}
    name, device = _staged(fleet, timeouts=limits)
    fleet.later(4 * HOUR)
    fleet.tick()
    assert fleet.in_state(name, E.STAGED) == [device]
    fleet.later(1801)
    fleet.tick()
    assert fleet.in_state(name, E.TIMED_OUT) == [device]


def test_a_window_that_passed_unused_is_followed_by_the_next(fleet: Fleet) -> None:
    name, device = _staged(fleet, timeouts={"silent": "1d", "execution": "1d"})
    before, first = fleet.parts(name)[device], fleet.order(device)
    fleet.later(6 * HOUR)
    fleet.tick()
    after, second = fleet.parts(name)[device], fleet.order(device)
    assert (after.id, after.state) == (before.id, "STAGED")
    assert after.generation == before.generation + 1 == second.generation
    assert (second.execution, second.bundle) == (first.execution, first.bundle)
    tomorrow = START + timedelta(days=1, hours=4)
    assert _window(fleet, device) == (tomorrow, tomorrow + timedelta(hours=2))
    assert fleet.decisions(name)[0].kind in {"next_window", "hold"}
    fleet.later(19 * HOUR)
    fleet.succeed(name, device)
    fleet.tick()
    assert fleet.view(name).waves[1].state == "open"
    fleet.check_replay(name)


def test_whoever_is_gone_when_its_window_has_passed_is_silent(fleet: Fleet) -> None:
    """Else it would be given a new window for ever."""
    name, device = _staged(fleet, timeouts={"silent": "3h"})
    fleet.later(6 * HOUR - 1)
    fleet.tick()
    assert fleet.in_state(name, E.STAGED) == [device]
    fleet.later(1)
    fleet.tick()
    assert fleet.in_state(name, E.TIMED_OUT) == [device]


def test_what_is_stopped_at_noon_does_not_begin_at_night(fleet: Fleet) -> None:
    name, device = _staged(fleet)
    fleet.do("pause", name)
    assert fleet.parts(name)[device].state == "QUEUED"
    assert fleet.order(device).action is Action.HOLD
    assert not fleet.report(name, device, E.CANCELED, reason=Reason.WITHDRAWN)
    fleet.do("resume", name)
    fleet.tick()
    assert fleet.in_state(name, E.OFFERED) == [device]
