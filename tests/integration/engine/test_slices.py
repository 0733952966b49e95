"""Devices are taken back in slices: the decision holds at once, a kill loses one slice at most."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from sqlalchemy import select

from agent.protocol.words import Action, ExecutionState, Reason
from control_plane.jobs import ticks
from control_plane.services import rollout_sweep
from control_plane.services.scope import Scope
from control_plane.store import schema
from tests.integration.engine.conftest import Fleet

E = ExecutionState
ALL = [{"name": "all", "percent": 100}]
OPEN = (E.QUEUED, E.OFFERED, E.DOWNLOADING, E.SOAKING)


class KilledError(Exception):
    """What a kill looks like from inside: the transaction is gone."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_sweep, "SLICE", 2)
    monkeypatch.setattr(rollout_sweep, "QUEUED_SLICE", 3)


def _killed_after(fleet: Fleet, steps: int) -> Callable[[], AbstractContextManager[Scope]]:
    """Return an opener whose transactions after so many are lost before their commit."""
    opened: list[int] = []

    @contextmanager
    def writing() -> Iterator[Scope]:
        opened.append(1)
        with fleet.scope() as scope:
            yield scope
            if len(opened) > steps:
                raise KilledError

    return writing


def _pending(fleet: Fleet, name: str) -> str:
    with fleet.scope() as scope:
        query = select(schema.rollout.c.pending).where(schema.rollout.c.name == name)
        return str(scope.tx.execute(query).scalar_one())


def test_a_halt_holds_from_the_first_slice_on_whatever_is_killed(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", waves=ALL)
    fleet.fail(name, fleet.in_state(name, E.OFFERED)[0])
    for killed_after in (1, 2, 1):
        ticks.tick(fleet.scope, _killed_after(fleet, killed_after))
        assert fleet.view(name).state == "HALTED"
        fleet.check_tallies()
    assert 0 < len(fleet.in_state(name, E.OFFERED)) < 9
    assert fleet.tick().offered == 0
    assert fleet.in_state(name, E.OFFERED) == []
    assert _pending(fleet, name) == ""
    for device in fleet.in_state(name, E.QUEUED):
        assert fleet.order(device).action is Action.HOLD


def test_a_revert_goes_on_after_kills_until_every_device_has_its_order(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", waves=ALL, pace={"max_in_flight": 9, "per_minute": 100})
    offered = fleet.in_state(name, E.OFFERED)
    for device in offered[:5]:
        fleet.succeed(name, device)
    soaking = offered[5]
    fleet.report(name, soaking, E.SOAKING, digest=fleet.parts(name)[soaking].digest)
    assert fleet.do("revert", name).state == "REVERTING"
    assert _pending(fleet, name)
    for _ in range(3):
        ticks.tick(fleet.scope, _killed_after(fleet, 1))
        fleet.check_tallies()
    fleet.tick()
    assert _pending(fleet, name) == ""
    assert fleet.in_state(name, *OPEN) == []
    for device in (*offered[:5], soaking):
        order = fleet.order(device)
        assert order.action is Action.REVERT
        assert order.bundle is not None
        assert fleet.report(
            name, device, E.ROLLED_BACK, generation=order.generation,
            reason=Reason.REVERTED, digest=order.bundle.digest,
        )  # fmt: skip
    fleet.tick()
    assert fleet.view(name).state == "REVERTED"


def test_an_abort_ends_at_once_and_its_devices_slice_by_slice(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", waves=ALL, pace={"max_in_flight": 5, "per_minute": 100})
    view = fleet.do("abort", name)
    assert view.state == "ABORTED"
    assert len(fleet.in_state(name, *OPEN)) == 10
    assert ticks.tick(fleet.scope, _killed_after(fleet, 1)).offered == 0
    assert len(fleet.in_state(name, *OPEN)) == 8
    assert fleet.tick().offered == 0
    assert fleet.in_state(name, E.CANCELED) == sorted(fleet.parts(name))
    assert fleet.tick().rollouts == 0


def test_resuming_stops_a_withdrawal_that_is_under_way(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", waves=ALL)
    fleet.do("pause", name)
    assert len(fleet.in_state(name, E.OFFERED)) == 10
    fleet.do("resume", name)
    assert _pending(fleet, name) == ""
    fleet.tick()
    assert len(fleet.in_state(name, E.OFFERED)) == 12


def test_giving_up_while_devices_are_sent_back_leaves_the_others_alone(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", waves=ALL, pace={"max_in_flight": 6, "per_minute": 100})
    offered = fleet.in_state(name, E.OFFERED)
    for device in offered:
        fleet.succeed(name, device)
    fleet.do("revert", name)
    fleet.do("abort", name)
    fleet.tick()
    actions = [fleet.order(device).action for device in offered]
    assert actions.count(Action.REVERT) == 2
    assert fleet.in_state(name, *OPEN) == []
    assert fleet.view(name).state == "ABORTED"
