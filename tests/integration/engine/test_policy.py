"""What a policy promises, on a real database: when, how many at once, who first, who approves."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec import UNSET
from sqlalchemy import update

from agent.protocol.messages import ActivationWindow
from agent.protocol.words import Action, ExecutionState, Reason
from control_plane.domain.errors import ForbiddenError, IllegalTransitionError
from control_plane.services import inventory
from control_plane.store import rollouts as store
from control_plane.store import schema
from tests.integration.engine.conftest import START, Fleet

E = ExecutionState
ALL = [{"name": "all", "percent": 100}]
FLYING = (E.OFFERED, E.DOWNLOADING, E.STAGED, E.BENCHMARKING, E.ACTIVATING, E.SOAKING)
HOUR = 3600.0
AT_NOON = START.hour  # the fleet's clock begins at 12:00 UTC


def _label(fleet: Fleet, device: str, **labels: str) -> None:
    with fleet.scope() as scope:
        inventory.label_device(scope, device, labels)


# --- pace -------------------------------------------------------------------------------------


def test_a_pace_grows_with_its_successes_up_to_its_limit(fleet: Fleet) -> None:
    growth = {"factor": 2.0, "every": 2, "limit": 5}
    name = fleet.start("1.1.0", waves=ALL, pace={"per_minute": 1, "growth": growth})
    offered: list[int] = []
    while fleet.view(name).ended_at is None:
        devices = fleet.in_state(name, E.OFFERED)
        offered.append(len(devices))
        for device in devices:
            fleet.succeed(name, device)
        fleet.later(61)
        fleet.tick()
    # After 0, 1, 2, 4 and 8 successes; the last minute has what is left.
    assert offered == [1, 1, 2, 4, 4]
    fleet.check_replay(name)


def test_a_wave_has_its_own_pace(fleet: Fleet) -> None:
    waves = [{"name": "lab", "count": 3, "pace": {"max_in_flight": 1}}, *ALL]
    name = fleet.start("1.1.0", waves=waves, pace={"max_in_flight": 4})
    for _ in range(3):
        (only,) = fleet.in_state(name, E.OFFERED)
        fleet.succeed(name, only)
        fleet.tick()
    assert len(fleet.in_state(name, E.OFFERED)) == 4


# --- disruption budgets -----------------------------------------------------------------------


def _sites(fleet: Fleet) -> dict[str, str]:
    """Put each device at one of two sites, but one that has none."""
    found: dict[str, str] = {}
    for number, device in enumerate(sorted(fleet.parts(fleet.create("1.1.0", name="all-of-it")))):
        if number:
            found[device] = ("vie", "lnz")[number % 2]
            _label(fleet, device, site=found[device])
    return found


def _busiest(fleet: Fleet, sites: dict[str, str], *names: str) -> dict[str, int]:
    busy: dict[str, int] = {}
    for name in names:
        for device in fleet.in_state(name, *FLYING):
            busy[sites.get(device, "")] = busy.get(sites.get(device, ""), 0) + 1
    return busy


def test_no_site_has_more_in_flight_than_its_budget(fleet: Fleet) -> None:
    sites = _sites(fleet)
    name = fleet.start("1.1.0", waves=ALL, budgets=[{"label": "site", "max": 2}])
    assert _busiest(fleet, sites, name) == {"vie": 2, "lnz": 2, "": 1}
    assert "site lnz has 2 of 2 devices in flight" in fleet.rules(name)["room"]
    for _ in range(20):
        if fleet.view(name).ended_at is not None:
            break
        for device in fleet.in_state(name, E.OFFERED)[:3]:
            fleet.succeed(name, device)
        fleet.tick()
        busy = _busiest(fleet, sites, name)
        assert max((busy.get(site, 0) for site in ("vie", "lnz")), default=0) <= 2
    assert fleet.view(name).state == "SUCCEEDED"
    fleet.check_replay(name)


def test_a_budget_counts_what_any_rollout_disturbs(fleet: Fleet) -> None:
    sites = _sites(fleet)
    waves = [{"name": "some", "count": 6}]
    older = fleet.start("1.1.0", waves=waves, pace={"max_in_flight": 2})
    fleet.later(1)
    fleet.add_version("1.2.0")
    taken = set(fleet.parts(older))
    selector = " or ".join(f'id = "{device}"' for device in sites if device not in taken)
    newer = fleet.start(
        "1.2.0", waves=ALL, selector=selector, budgets=[{"label": "site", "max": 2}]
    )
    busy = _busiest(fleet, sites, older, newer)
    assert busy["vie"] == busy["lnz"] == 2
    assert len(fleet.in_state(older, *FLYING)) == 2


def test_of_two_budgets_each_one_holds(fleet: Fleet) -> None:
    sites = _sites(fleet)
    for number, device in enumerate(sorted(sites)):
        _label(fleet, device, rack=f"r{number % 3}")
    budgets = [{"label": "site", "max": 2}, {"label": "rack", "max": 1}]
    name = fleet.start("1.1.0", waves=ALL, budgets=budgets)
    racks = {device: f"r{number % 3}" for number, device in enumerate(sorted(sites))}
    for _ in range(30):
        flying = fleet.in_state(name, *FLYING)
        for labels, most in ((sites, 2), (racks, 1)):
            values = [labels[device] for device in flying if device in labels]
            assert all(values.count(value) <= most for value in set(values))
        if not flying:
            break
        for device in flying[:2]:
            fleet.succeed(name, device)
        fleet.tick()
    assert fleet.view(name).state == "SUCCEEDED"


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


# --- approvals --------------------------------------------------------------------------------


def _asking(fleet: Fleet, **approval: Any) -> str:
    return fleet.start("1.1.0", waves=[{**ALL[0], "approval": approval}])


def test_as_many_people_as_are_needed_open_a_wave(fleet: Fleet) -> None:
    name = _asking(fleet, needed=2, of=["ann", "bob", "tester"])
    twice = [fleet.do_as("ann", "approve", name) for _ in range(2)]  # the same person counts once
    assert [view.state for view in twice] == ["AWAITING_APPROVAL"] * 2
    assert [view.approval and view.approval.left for view in twice] == [1, 1]
    view = fleet.view(name)
    assert view.approval is not None
    assert (view.approval.by, view.approval.of) == (["ann"], ["ann", "bob", "tester"])
    assert fleet.tick().offered == 0
    view = fleet.do_as("bob", "approve", name)
    assert (view.state, view.approval) == ("RUNNING", None)
    assert fleet.tick().offered > 0
    fleet.check_replay(name)


def test_whoever_wrote_it_or_is_not_asked_may_not_approve(fleet: Fleet) -> None:
    name = _asking(fleet, needed=1, of=["ann", "tester"])
    with pytest.raises(ForbiddenError, match="tester wrote this rollout"):
        fleet.do("approve", name)
    with pytest.raises(ForbiddenError, match="eve may not approve this wave; these may: ann"):
        fleet.do_as("eve", "approve", name)
    view = fleet.view(name)
    assert view.approval is not None
    assert (view.approval.by, view.approval.left) == ([], 1)


def test_whoever_changed_a_draft_wrote_it_too(fleet: Fleet) -> None:
    name = fleet.create("1.1.0", waves=[{**ALL[0], "approval": "required"}])
    with fleet.scope() as scope:  # as a change by bob leaves it
        scope.tx.execute(update(schema.rollout).values(edited_by="bob"))
    fleet.do("start", name)
    with pytest.raises(ForbiddenError, match="bob wrote"):
        fleet.do_as("bob", "approve", name)
    assert fleet.do_as("ann", "approve", name).state == "RUNNING"


def test_an_edit_voids_the_approvals_of_what_was_there_before(fleet: Fleet) -> None:
    name = _asking(fleet, needed=2)
    fleet.do_as("ann", "approve", name)
    with fleet.scope() as scope:
        spec = store.find(scope.tx, name)
        assert spec is not None
        changed = {**spec.spec, "soak": "1s"}
        store.save(scope.tx, name, spec=changed)
    view = fleet.do_as("bob", "approve", name)
    assert view.approval is not None
    assert (view.state, view.approval.by) == ("AWAITING_APPROVAL", ["bob"])


def test_an_approval_outlives_a_pause_and_is_of_one_wave_only(fleet: Fleet) -> None:
    asked = {"approval": {"needed": 2}}
    name = fleet.start("1.1.0", waves=[{"name": "c", "count": 1, **asked}, {**ALL[0], **asked}])
    fleet.do_as("ann", "approve", name)
    fleet.do("pause", name)
    with pytest.raises(IllegalTransitionError):
        fleet.do_as("bob", "approve", name)
    fleet.do("resume", name)
    fleet.do_as("bob", "approve", name)
    fleet.tick()
    fleet.succeed(name, fleet.in_state(name, E.OFFERED)[0])
    fleet.tick()
    view = fleet.view(name)
    assert view.approval is not None
    assert (view.state, view.approval.wave, view.approval.left) == ("AWAITING_APPROVAL", 1, 2)


# --- timeouts ---------------------------------------------------------------------------------


def test_a_step_that_takes_too_long_counts_though_the_device_is_heard(fleet: Fleet) -> None:
    steps = {"downloading": "10m", "benchmarking": "1h"}
    name = fleet.start("1.1.0", waves=ALL, timeouts={"steps": steps}, gates={"max_failures": 12})
    slow, quick = fleet.in_state(name, E.OFFERED)[:2]
    fleet.report(name, slow, E.DOWNLOADING)
    fleet.report(name, quick, E.BENCHMARKING)
    fleet.later(600)
    fleet.tick()
    assert fleet.in_state(name, E.TIMED_OUT) == []
    fleet.later(1)
    fleet.tick()
    assert fleet.in_state(name, E.TIMED_OUT) == [slow]
    assert fleet.order(slow).action is Action.HOLD


def test_a_wave_that_takes_too_long_ends_for_whoever_has_not_answered(fleet: Fleet) -> None:
    waves = [{"name": "canary", "count": 6, "timeout": "1h"}, *ALL]
    name = fleet.start("1.1.0", waves=waves, pace={"max_in_flight": 2})
    done, slow = fleet.in_state(name, E.OFFERED)
    fleet.succeed(name, done)
    fleet.report(name, slow, E.DOWNLOADING)
    fleet.tick()
    fleet.later(HOUR - 1)
    fleet.tick()
    assert fleet.in_state(name, E.TIMED_OUT) == []
    fleet.later(1)
    fleet.tick()
    assert len(fleet.in_state(name, E.TIMED_OUT)) == 5
    assert fleet.view(name).state == "HALTED"
    assert fleet.order(slow).action is Action.HOLD
    assert len(fleet.in_state(name, E.QUEUED)) == 6
    fleet.check_replay(name)


def test_a_wave_has_no_less_time_for_a_pause(fleet: Fleet) -> None:
    waves = [{"name": "all", "percent": 100, "timeout": "1h"}]
    name = fleet.start("1.1.0", waves=waves, timeouts={"silent": "2d", "execution": "2d"})
    fleet.later(1800)
    fleet.do("pause", name)
    fleet.later(10 * HOUR)
    fleet.tick()
    fleet.do("resume", name)
    fleet.tick()
    fleet.later(1799)
    fleet.tick()
    assert fleet.in_state(name, E.TIMED_OUT) == []
    fleet.later(1)
    fleet.tick()
    assert len(fleet.in_state(name, E.TIMED_OUT)) == 12


# --- priority ---------------------------------------------------------------------------------


def test_a_device_of_a_rollout_of_higher_priority_is_left_to_it(fleet: Fleet) -> None:
    waves = [{"name": "some", "count": 3}]
    urgent = fleet.start("1.1.0", waves=waves, priority=80, pace={"max_in_flight": 1})
    fleet.later(1)
    fleet.add_version("1.2.0")
    newer = fleet.start("1.2.0", waves=ALL)
    taken = set(fleet.parts(urgent))
    assert len(fleet.in_state(newer, E.OFFERED)) == 9
    assert not taken & set(fleet.in_state(newer, E.OFFERED))
    assert f"devices of {urgent} come first" in fleet.rules(newer)["room"]
    fleet.finish(urgent)
    fleet.tick()
    assert taken <= set(fleet.in_state(newer, E.OFFERED))


def test_a_rollout_of_higher_priority_takes_over_from_a_newer_one(fleet: Fleet) -> None:
    urgent = fleet.create("1.1.0", waves=ALL, priority=80)
    fleet.later(1)
    fleet.add_version("1.2.0")
    newer = fleet.start("1.2.0", waves=ALL)
    assert len(fleet.in_state(newer, E.OFFERED)) == 12
    fleet.do("start", urgent)
    fleet.tick()
    assert len(fleet.in_state(urgent, E.OFFERED)) == 12
    assert len(fleet.in_state(newer, E.SUPERSEDED)) == 12


# --- on a breach ------------------------------------------------------------------------------


def test_a_bad_blueprint_goes_back_alone_and_the_others_go_on(fleet: Fleet) -> None:
    gates = {"scope": "blueprint"}
    name = fleet.start("1.1.0", gates=gates, on_breach="revert")
    bad, *good = fleet.in_state(name, E.OFFERED)
    blueprint = fleet.parts(name)[bad].blueprint
    fleet.report(name, bad, E.SOAKING, digest=fleet.parts(name)[bad].digest)
    fleet.report(name, bad, E.ROLLED_BACK, reason=Reason.SOAK_UNHEALTHY)
    for device in good:
        fleet.succeed(name, device)
    fleet.tick()
    assert fleet.view(name).state == "RUNNING"
    theirs = [part for part in fleet.parts(name).values() if part.blueprint == blueprint]
    assert {part.state for part in theirs} == {"CANCELED", "ROLLED_BACK"}
    fleet.finish(name)
    view = fleet.view(name)
    assert view.state == "SUCCEEDED"
    assert blueprint in view.state_reason
    others = [part for part in fleet.parts(name).values() if part.blueprint != blueprint]
    assert {part.state for part in others} == {"SUCCEEDED"}
    fleet.check_replay(name)
