"""A device's history: one line for each change of what runs, with version and reason."""

from sqlalchemy import select

from agent.protocol.messages import Event
from agent.protocol.words import ExecutionState, Reason
from control_plane.domain.device import DeviceId
from control_plane.services import executions
from control_plane.store import schema
from tests.integration.engine.conftest import Fleet, digest_of

E = ExecutionState


def _history(fleet: Fleet, device: str) -> list[tuple[str, str]]:
    table = schema.device_history
    with fleet.scope() as scope:
        query = select(table.c.version, table.c.why).where(
            table.c.device_id == device, table.c.kind == "active"
        )
        return [(row[0], row[1]) for row in scope.tx.execute(query.order_by(table.c.id))]


def test_an_update_and_its_return_are_two_lines(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    device = fleet.in_state(name, E.OFFERED)[0]
    fleet.succeed(name, device)
    assert _history(fleet, device) == [("1.1.0", "soaking")]
    fleet.do("revert", name)
    order = fleet.order(device)
    assert order.bundle is not None
    for _ in range(2):
        fleet.report(
            name, device, E.ROLLED_BACK, digest=order.bundle.digest, reason=Reason.REVERTED,
            generation=order.generation,
        )  # fmt: skip
    assert _history(fleet, device) == [("1.1.0", "soaking"), ("1.0.0", "reverted")]


def test_a_refused_trial_leaves_one_line_for_what_ran_all_along(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    device = fleet.in_state(name, E.OFFERED)[0]
    old = digest_of("1.0.0", fleet.parts(name)[device].blueprint)
    fleet.report(name, device, E.BENCHMARKING, digest=old)
    fleet.report(name, device, E.ROLLED_BACK, digest=old, reason=Reason.TRIAL_REGRESSION)
    assert [version for version, _ in _history(fleet, device)] == ["1.0.0"]


def test_what_a_device_did_after_it_was_given_up_is_kept(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", timeouts={"silent": "1m"})
    device = fleet.in_state(name, E.OFFERED)[0]
    fleet.later(61)
    fleet.tick()
    digest = fleet.parts(name)[device].digest
    assert not fleet.report(name, device, E.SUCCEEDED, digest=digest, reason=Reason.SOAKED)
    assert _history(fleet, device) == [("1.1.0", "soaked")]


def _overtaken(fleet: Fleet) -> tuple[str, str, str]:
    """Let a device soak 1.1.0 when 1.2.0 takes it over, which it runs after it has confirmed."""
    older = fleet.start("1.1.0", waves=[{"name": "all", "percent": 100}])
    device = fleet.in_state(older, E.OFFERED)[0]
    fleet.report(older, device, E.SOAKING, digest=fleet.parts(older)[device].digest)
    fleet.later(1)
    fleet.add_version("1.2.0")
    newer = fleet.start("1.2.0", waves=[{"name": "all", "percent": 100}])
    return older, newer, device


def test_a_confirmation_that_a_newer_update_overtakes_is_no_change(fleet: Fleet) -> None:
    older, newer, device = _overtaken(fleet)
    was, now = fleet.parts(older)[device].digest, fleet.parts(newer)[device].digest
    fleet.report(newer, device, E.SOAKING, digest=now)
    fleet.report(older, device, E.SUCCEEDED, digest=was, reason=Reason.SOAKED)
    fleet.report(newer, device, E.SUCCEEDED, digest=now, reason=Reason.SOAKED)
    assert _history(fleet, device) == [("1.1.0", "soaking"), ("1.2.0", "soaking")]


def test_a_change_that_is_told_too_late_is_not_what_runs_now(fleet: Fleet) -> None:
    older, newer, device = _overtaken(fleet)
    part = fleet.parts(older)[device]
    fleet.report(newer, device, E.SUCCEEDED, digest=fleet.parts(newer)[device].digest)
    old = digest_of("1.0.0", part.blueprint)
    fleet.report(older, device, E.ROLLED_BACK, digest=old, reason=Reason.SOAK_UNHEALTHY)
    told = [version for version, _ in _history(fleet, device)]
    assert told == ["1.1.0", "1.2.0", "1.0.0", "1.2.0"], "it is told, and then what runs again"


def test_a_return_that_another_gateway_applies_meanwhile_ends_the_history(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    device = fleet.in_state(name, E.OFFERED)[0]
    part = fleet.parts(name)[device]
    old = digest_of("1.0.0", part.blueprint)
    fleet.report(name, device, E.BENCHMARKING, digest=old)
    fleet.report(name, device, E.SOAKING, digest=part.digest)
    back = Event(
        boot=1, seq=99, generation=part.generation, execution=part.id, state=E.ROLLED_BACK,
        reason=Reason.SOAK_UNHEALTHY, digest=old,
    )  # fmt: skip
    with fleet.scope() as scope:
        # What it had read before it waited for the rollout: SOAKING was not committed yet.
        executions.apply(scope, [(DeviceId(device), back)], {DeviceId(device): old})
    assert [version for version, _ in _history(fleet, device)] == ["1.0.0", "1.1.0", "1.0.0"]


def test_a_success_that_is_told_after_the_return_is_not_what_runs_now(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    device = fleet.in_state(name, E.OFFERED)[0]
    digest = fleet.parts(name)[device].digest
    fleet.report(name, device, E.ACTIVATING)
    fleet.do("revert", name)
    order = fleet.order(device)
    assert order.bundle is not None
    fleet.report(
        name, device, E.ROLLED_BACK, digest=order.bundle.digest, reason=Reason.REVERTED,
        generation=order.generation,
    )  # fmt: skip
    fleet.report(name, device, E.SUCCEEDED, digest=digest, reason=Reason.SOAKED)
    told = [version for version, _ in _history(fleet, device)]
    assert told == ["1.0.0", "1.1.0", "1.0.0"], "it is told, and then what runs again"


def test_a_report_for_another_devices_part_or_none_changes_nothing(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    device, other = fleet.in_state(name, E.OFFERED)[:2]
    part = fleet.parts(name)[device]
    with fleet.scope() as scope:
        for execution in (part.id, "0" * 32):
            event = Event(
                boot=1, seq=1, generation=part.generation, execution=execution, state=E.FAILED
            )
            assert not executions.apply(scope, [(DeviceId(other), event)])
    assert fleet.parts(name)[device].state == "OFFERED"
