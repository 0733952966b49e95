"""A newer rollout takes devices over from an older one, whatever they were doing for it."""

import threading

from sqlalchemy import update

from agent.protocol.words import Action, ExecutionState, Reason, Verdict
from control_plane.store import benches, schema
from tests.integration.engine.conftest import Fleet

E = ExecutionState
ALL = [{"name": "all", "percent": 100}]


IN_FLIGHT = (E.OFFERED, E.DOWNLOADING, E.STAGED, E.BENCHMARKING, E.ACTIVATING, E.SOAKING)
LATE = {
    E.DOWNLOADING: Reason.NONE,
    E.SOAKING: Reason.NONE,
    E.SUCCEEDED: Reason.SOAKED,
    E.FAILED: Reason.DOWNLOAD_FAILED,
    E.ROLLED_BACK: Reason.TRIAL_REGRESSION,
    E.SUPERSEDED: Reason.NONE,
}


def test_offers_in_flight_are_taken_over_wherever_they_are(fleet: Fleet) -> None:
    older = fleet.start("1.1.0", waves=ALL)
    devices = fleet.in_state(older, E.OFFERED)[: len(IN_FLIGHT)]
    for device, state in zip(devices[1:], IN_FLIGHT[1:], strict=True):
        fleet.report(older, device, state)
    fleet.later(1)
    fleet.add_version("1.2.0")
    newer = fleet.start("1.2.0", waves=ALL)
    was, now = fleet.parts(older), fleet.parts(newer)
    for device in devices:
        order = fleet.order(device)
        states = was[device].state, was[device].reason, now[device].state
        assert states == ("SUPERSEDED", "superseded", "OFFERED")
        assert (order.action, order.execution) == (Action.RUN, now[device].id)
        assert order.bundle is not None
        assert order.bundle.version == "1.2.0"
    # What it would go back to is what it confirmed, not what it was trying.
    soaking = devices[-1]
    fleet.report(newer, soaking, E.SOAKING)
    fleet.do("revert", newer)
    order = fleet.order(soaking)
    assert order.bundle is not None
    assert (order.action, order.bundle.version) == (Action.REVERT, "1.0.0")
    assert fleet.order(devices[0]).action is Action.HOLD


def test_a_revert_leads_to_what_was_confirmed_after_the_offer(fleet: Fleet) -> None:
    older = fleet.start("1.1.0", waves=ALL)
    told, untold, *_ = fleet.in_state(older, E.OFFERED)
    was = fleet.parts(older)
    fleet.later(1)
    fleet.add_version("1.2.0")
    newer = fleet.start("1.2.0", waves=ALL)
    confirmed = was[told].digest
    fleet.report(
        older, told, E.SUCCEEDED, digest=confirmed, reason=Reason.SOAKED,
        generation=was[told].generation,
    )  # fmt: skip
    fleet.report(newer, told, E.SOAKING, digest=fleet.parts(newer)[told].digest)
    with fleet.scope() as scope:  # the event of this one is still on its way, its state is not
        mine = update(schema.device).where(schema.device.c.id == untold)
        scope.tx.execute(mine.values(last_known_good=was[untold].digest))
    fleet.report(newer, untold, E.SOAKING, digest=fleet.parts(newer)[untold].digest)
    fleet.do("revert", newer)
    for device in (told, untold):
        order = fleet.order(device)
        assert order.bundle is not None
        assert (order.action, order.bundle.version) == (Action.REVERT, "1.1.0")


def test_what_is_said_late_for_the_old_rollout_changes_nothing(fleet: Fleet) -> None:
    older = fleet.start("1.1.0", waves=ALL)
    offered = fleet.in_state(older, E.OFFERED)
    fleet.succeed(older, offered.pop())
    parts = fleet.parts(older)
    fleet.later(1)
    fleet.add_version("1.2.0")
    newer = fleet.start("1.2.0", waves=ALL)
    before = fleet.view(older), fleet.view(newer), _measured(fleet, older)
    for device, (state, reason) in zip(offered, LATE.items(), strict=False):
        digest, generation = parts[device].digest, parts[device].generation
        assert not fleet.report(
            older, device, state, digest=digest, reason=reason, generation=generation
        )
        fleet.trial(older, device, ratio=1.9, verdict=Verdict.REGRESSION)
        assert (fleet.view(older), fleet.view(newer), _measured(fleet, older)) == before, state
    fleet.check_tallies()


def _measured(fleet: Fleet, name: str) -> object:
    with fleet.scope() as scope:
        return benches.tallies(scope.tx, name)


def test_the_old_rollout_gives_way_when_nothing_is_left_to_it(fleet: Fleet) -> None:
    older = fleet.start("1.1.0", waves=ALL)
    done, *_ = fleet.in_state(older, E.OFFERED)
    fleet.succeed(older, done)
    fleet.later(1)
    fleet.add_version("1.2.0")
    newer = fleet.start("1.2.0", waves=ALL)
    fleet.tick()
    view = fleet.view(older)
    assert view.state == "ABORTED"
    assert view.state_reason == "a newer rollout has taken over the devices that were left"
    assert fleet.decisions(older)[0].kind == "give_way"
    assert fleet.parts(older)[done].state == "SUCCEEDED"
    fleet.finish(newer)


def test_an_old_rollout_that_waits_for_a_person_gives_way_too(fleet: Fleet) -> None:
    waves = [{"name": "canary", "count": 3}, {**ALL[0], "approval": "required"}]
    older = fleet.start("1.1.0", waves=waves)
    for device in fleet.in_state(older, E.OFFERED):
        fleet.succeed(older, device)
    fleet.tick()
    assert fleet.view(older).state == "AWAITING_APPROVAL"
    fleet.later(1)
    fleet.add_version("1.2.0")
    fleet.start("1.2.0", waves=ALL)
    fleet.tick()
    assert (fleet.view(older).state, fleet.decisions(older)[0].kind) == ("ABORTED", "give_way")


def test_only_the_devices_that_are_offered_the_newer_one_change_hands(fleet: Fleet) -> None:
    older = fleet.start("1.1.0", waves=ALL)
    fleet.later(1)
    fleet.add_version("1.2.0")
    newer = fleet.start("1.2.0")
    canary = fleet.in_state(newer, E.OFFERED)
    assert fleet.in_state(older, E.SUPERSEDED) == canary
    assert len(fleet.in_state(older, E.OFFERED)) == 9
    fleet.tick()
    assert fleet.view(older).state == "RUNNING"


def test_an_older_rollout_that_starts_later_takes_nothing_from_a_newer_one(fleet: Fleet) -> None:
    older = fleet.create("1.1.0", waves=ALL)
    fleet.later(1)
    fleet.add_version("1.2.0")
    newer = fleet.start("1.2.0")
    canary = fleet.in_state(newer, E.OFFERED)
    fleet.do("start", older)
    fleet.tick()
    assert fleet.in_state(newer, E.OFFERED) == canary
    for device in canary:
        order = fleet.order(device)
        assert order.bundle is not None
        assert order.bundle.version == "1.2.0"
        assert fleet.parts(older)[device].state in {"QUEUED", "SUPERSEDED"}


def test_reports_and_the_newer_rollouts_ticks_at_once_count_each_device_once(
    fleet: Fleet,
) -> None:
    older = fleet.start("1.1.0", waves=ALL)
    fleet.later(1)
    fleet.add_version("1.2.0")
    newer = fleet.create("1.2.0", waves=ALL, pace={"max_in_flight": 3, "per_minute": 10_000})
    fleet.do("start", newer)
    offered = fleet.in_state(older, E.OFFERED)
    begin = threading.Barrier(2)

    def take_over() -> None:
        begin.wait()
        for _ in range(3):
            fleet.tick()

    thread = threading.Thread(target=take_over)
    thread.start()
    begin.wait()
    for device in offered:
        fleet.report(older, device, E.DOWNLOADING)
    thread.join()
    fleet.check_tallies()
    taken = fleet.in_state(newer, E.OFFERED)
    assert fleet.in_state(older, E.SUPERSEDED) == taken
    assert all(fleet.order(device).execution == fleet.parts(newer)[device].id for device in taken)
