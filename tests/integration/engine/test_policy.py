"""What a policy promises, on a real database: how many at once, for how long, who first."""

from agent.protocol.words import Action, ExecutionState, Reason
from tests.integration.engine.conftest import Fleet

E = ExecutionState
ALL = [{"name": "all", "percent": 100}]
FLYING = (E.OFFERED, E.DOWNLOADING, E.STAGED, E.BENCHMARKING, E.ACTIVATING, E.SOAKING)
HOUR = 3600.0


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
            fleet.label(device, site=found[device])
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
        fleet.label(device, rack=f"r{number % 3}")
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
