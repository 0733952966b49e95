"""A model version that is called invalid: rollouts, plans, builds, bytes and devices."""

import threading
from typing import Any

import pytest
from sqlalchemy import func, select, update

from agent.protocol.words import Action, ExecutionState, Reason
from control_plane.domain.device import DeviceId
from control_plane.domain.errors import (
    ConflictError,
    GoneError,
    InvalidatedError,
    InvalidError,
    NotFoundError,
)
from control_plane.services import builds, enrollment, invalidation, models
from control_plane.services.invalidation import Invalidated
from control_plane.store import schema
from tests.integration.engine.conftest import BLUEPRINTS, Fleet, digest_of

E = ExecutionState
ALL = [{"name": "all", "percent": 100}]
WHY = "it leaks addresses"


def invalidate(fleet: Fleet, version: str, **how: Any) -> Invalidated:
    with fleet.scope() as scope:
        return invalidation.invalidate(scope, "slm", version, **{"reason": WHY, **how})


def test_its_rollouts_end_with_the_reason_and_devices_keep_what_they_run(fleet: Fleet) -> None:
    draft = fleet.create("1.1.0")
    fleet.add_version("1.2.0")
    running = fleet.start("1.2.0", waves=ALL)
    done, begun, waiting, *_ = fleet.in_state(running, E.OFFERED)
    fleet.succeed(running, done)
    fleet.report(running, begun, E.DOWNLOADING)
    for version in ("1.1.0", "1.2.0"):
        invalidate(fleet, version)
    for name, version in ((draft, "1.1.0"), (running, "1.2.0")):
        view = fleet.view(name)
        said = f"slm {version} was invalidated by tester: {WHY}"
        assert (view.state, view.state_reason) == ("ABORTED", said)
        assert fleet.explain(name).headline.endswith(said)
    assert [fleet.order(device).action for device in (done, begun, waiting)] == [
        Action.RUN,
        Action.HOLD,
        Action.HOLD,
    ]
    assert fleet.tick().offered == 0


def test_devices_that_run_it_are_ordered_back_when_asked(fleet: Fleet) -> None:
    ended = fleet.start("1.1.0", waves=ALL, selector='blueprint = "arm64-board"')
    fleet.finish(ended)
    fleet.later(1)
    second = {"waves": ALL, "selector": 'blueprint = "x86-64-avx2"'}
    document = fleet.create("1.1.0", name="slm-other", **second)
    fleet.do("start", document)
    fleet.tick()
    done, soaking, begun, waiting = fleet.in_state(document, E.OFFERED)
    fleet.succeed(document, done)
    fleet.report(document, soaking, E.SOAKING, digest=digest_of("1.1.0", "x86-64-avx2"))
    fleet.report(document, begun, E.DOWNLOADING)
    outcome = invalidate(fleet, "1.1.0", devices="revert")
    assert [(one.name, one.state) for one in outcome.rollouts] == [("slm-other", "REVERTING")]
    assert (outcome.running, outcome.returning, outcome.nothing_to_go_back_to) == (5, 5, [])
    back = [*fleet.parts(ended), done, soaking]
    for device in back:
        order = fleet.order(device)
        assert (order.action, order.bundle is not None) == (Action.REVERT, True)
        assert order.bundle is not None
        assert order.bundle.version == "1.0.0"
    assert {fleet.order(device).action for device in (begun, waiting)} == {Action.HOLD}
    fleet.tick()
    board = min(fleet.parts(ended))
    order = fleet.order(board)
    assert fleet.report(
        ended, board, E.ROLLED_BACK, reason=Reason.REVERTED, generation=order.generation,
        digest=digest_of("1.0.0", "arm64-board"),
    )  # fmt: skip
    assert fleet.parts(ended)[board].reverted
    assert fleet.view(ended).state == "SUCCEEDED", "a terminal state is never left"


def test_no_order_leads_back_to_an_invalid_bundle(fleet: Fleet) -> None:
    invalidate(fleet, "1.0.0")
    name = fleet.start("1.1.0", waves=ALL)
    done, *_ = fleet.in_state(name, E.OFFERED)
    fleet.succeed(name, done)
    fleet.do("revert", name, reason="complaints")
    assert fleet.order(done).action is Action.RUN
    part = fleet.parts(name)[done]
    assert (part.state, part.reason) == ("SUCCEEDED", "nothing valid to go back to")
    fleet.tick()
    assert fleet.view(name).state == "REVERTED"
    outcome = invalidate(fleet, "1.1.0", devices="revert")
    assert (outcome.returning, outcome.nothing_to_go_back_to) == (0, [done])


def test_an_order_back_that_is_on_its_way_is_taken_back(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", waves=ALL)
    done, *_ = fleet.in_state(name, E.OFFERED)
    fleet.succeed(name, done)
    fleet.do("revert", name)
    assert fleet.order(done).action is Action.REVERT
    invalidate(fleet, "1.0.0")
    assert fleet.order(done).action is Action.HOLD
    assert fleet.parts(name)[done].reason == "nothing valid to go back to"
    fleet.tick()
    assert fleet.view(name).state == "REVERTED", "nobody waits for a return that nobody ordered"


def test_a_device_on_its_way_to_another_version_is_left_to_go_there(lone_fleet: Fleet) -> None:
    name = lone_fleet.start("1.1.0", waves=ALL)
    lone_fleet.finish(name)
    lone_fleet.later(1)
    lone_fleet.add_version("1.2.0")
    newer = lone_fleet.start("1.2.0", waves=[{"name": "one", "count": 1}])
    moving = lone_fleet.in_state(newer, E.OFFERED)
    outcome = invalidate(lone_fleet, "1.1.0", devices="revert")
    assert (outcome.running, outcome.returning, outcome.moving) == (12, 11, 1)
    assert [lone_fleet.order(device).action for device in moving] == [Action.RUN]
    # It stays with 1.1.0 after all; asked again, the same verb sends it back as well.
    lone_fleet.do("abort", newer)
    assert invalidate(lone_fleet, "1.1.0", devices="revert").returning == 12


def test_nothing_new_is_planned_started_built_or_retried(lone_fleet: Fleet) -> None:
    name = lone_fleet.start("1.1.0")
    lone_fleet.fail(name, lone_fleet.in_state(name, E.OFFERED)[0])
    invalidate(lone_fleet, "1.1.0")
    refused = f"slm 1.1.0 was invalidated by tester: {WHY}"
    with pytest.raises(InvalidatedError, match=refused) as planned:
        lone_fleet.create("1.1.0", name="again")
    assert planned.value.field == "spec.version"
    for verb in ("start", "retry"):
        with pytest.raises(InvalidatedError, match=refused):
            lone_fleet.do(verb, name)
    with lone_fleet.scope() as scope, pytest.raises(InvalidatedError, match=refused):
        builds.request(scope, "slm", "1.1.0", BLUEPRINTS[0])
    with lone_fleet.scope() as scope:
        version = models.get_version(scope, "slm", "1.1.0")
        listed = models.list_models(scope).items[0]
    assert (version.invalid_reason, version.invalidated_by) == (WHY, "tester")
    assert (listed.versions, listed.invalid) == (2, 1)


def test_builds_that_wait_or_run_are_stopped(fleet: Fleet) -> None:
    fleet.add_version("1.2.0", built=())
    name = fleet.start("1.2.0")
    assert fleet.view(name).state == "BUILDING"
    assert invalidate(fleet, "1.2.0").builds == 3
    with fleet.scope() as scope:
        found = builds.list_builds(scope, model="slm", version="1.2.0").items
        assert builds.due(scope) == []
    assert {build.state for build in found} == {"FAILED"}
    fleet.tick()
    assert fleet.view(name).state == "ABORTED"


def test_its_bytes_are_gone_for_devices_unless_a_valid_version_has_them_too(fleet: Fleet) -> None:
    fleet.add_version("1.2.0")
    first = fleet.start("1.1.0", waves=ALL)
    device = DeviceId(fleet.in_state(first, E.OFFERED)[0])
    digests = {v: digest_of(v, BLUEPRINTS[2]) for v in ("1.1.0", "1.2.0")}
    own, shared = "a" * 64, "b" * 64
    with fleet.scope() as scope:
        for digest, sha256 in ((digests["1.1.0"], own), *((d, shared) for d in digests.values())):
            row = {"digest": digest, "path": sha256[:8], "size": 1, "sha256": sha256}
            scope.tx.execute(schema.bundle_file.insert().values(**row))
    assert device.startswith(BLUEPRINTS[2])
    _ask(fleet, device, own)
    invalidate(fleet, "1.1.0")
    for sha256 in (own, shared):
        with pytest.raises(GoneError, match=WHY) as gone:
            _ask(fleet, device, sha256)
        assert gone.value.code == "version-invalid"
    with fleet.scope() as scope, pytest.raises(GoneError):
        enrollment.bundle_envelope(scope, device, digests["1.1.0"])
    fleet.later(1)
    fleet.start("1.2.0", waves=ALL)
    _ask(fleet, device, shared)
    with pytest.raises(GoneError):
        _ask(fleet, device, own)


def _ask(fleet: Fleet, device: DeviceId, sha256: str) -> None:
    with fleet.scope() as scope:
        enrollment.authorize_blob(scope, device, sha256)


def test_what_does_not_exist_or_has_no_reason_is_refused(lone_fleet: Fleet) -> None:
    with pytest.raises(NotFoundError):
        invalidate(lone_fleet, "9.9.9")
    with pytest.raises(InvalidError) as refused:
        invalidate(lone_fleet, "1.1.0", reason=" ")
    assert refused.value.field == "reason"
    lone_fleet.create("1.1.0")


def test_asked_twice_it_is_invalid_since_the_first_time(lone_fleet: Fleet) -> None:
    first = invalidate(lone_fleet, "1.1.0")
    lone_fleet.later(60)
    again = invalidate(lone_fleet, "1.1.0", reason="another")
    assert (again.reason, again.invalidated_at) == (WHY, first.invalidated_at)


def test_whatever_comes_first_no_rollout_of_it_goes_on(fleet: Fleet) -> None:
    """Create, start and tick in one thread against an invalidation in another."""
    fleet.add_version("1.2.0")
    begin = threading.Barrier(2)
    refused: list[str] = []

    def use() -> None:
        begin.wait()
        try:
            for number in range(3):
                name = fleet.create("1.2.0", name=f"slm-{number}")
                fleet.do("start", name)
                fleet.tick()
        except ConflictError as error:
            refused.append(error.code)

    thread = threading.Thread(target=use)
    thread.start()
    begin.wait()
    invalidate(fleet, "1.2.0")
    thread.join()
    assert set(refused) <= {"version-invalid", "illegal-transition"}
    fleet.tick()
    digests = [digest_of("1.2.0", blueprint) for blueprint in BLUEPRINTS]
    with fleet.scope() as scope:
        rollout, desired = schema.rollout, schema.desired
        states = select(rollout.c.state).where(rollout.c.version == "1.2.0")
        assert set(scope.tx.execute(states).scalars()) <= {"ABORTED"}
        run = select(func.count()).where(
            desired.c.digest.in_(digests), desired.c.action == Action.RUN.value
        )
        assert scope.tx.execute(run).scalar_one() == 0


def test_a_first_install_has_nothing_to_go_back_to(lone_fleet: Fleet) -> None:
    with lone_fleet.scope() as scope:
        nothing = update(schema.device).where(schema.device.c.id == "arm64-board-0")
        scope.tx.execute(nothing.values(digest="", last_known_good=""))
    name = lone_fleet.start("1.1.0", waves=ALL)
    lone_fleet.succeed(name, "arm64-board-0", first=True)
    outcome = invalidate(lone_fleet, "1.1.0", devices="revert")
    assert outcome.nothing_to_go_back_to == ["arm64-board-0"]
