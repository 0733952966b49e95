"""Ticks: a transaction a step, any number of schedulers, nothing written where nothing is due."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import func, select

from agent.protocol.words import ExecutionState
from control_plane.jobs import ticks
from control_plane.services.scope import Scope
from control_plane.store import leases
from tests.integration.engine.conftest import Fleet

E = ExecutionState


class KilledError(Exception):
    """What a kill looks like from inside: the transaction is gone."""


def test_a_tick_that_decides_nothing_writes_nothing(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    fleet.later(1)
    fleet.tick()
    written: list[object] = []

    @contextmanager
    def reading() -> Iterator[Scope]:
        with fleet.scope() as scope:
            lite = scope.tx.dialect.name == "sqlite"
            asked = func.total_changes() if lite else func.pg_current_xact_id_if_assigned()
            before = scope.tx.execute(select(asked)).scalar()
            yield scope
            written.append(scope.tx.execute(select(asked)).scalar() != before)

    @contextmanager
    def writing() -> Iterator[Scope]:
        raise AssertionError("nothing is due")
        yield

    for _ in range(3):
        fleet.later(1)
        assert ticks.tick(reading, writing).rollouts == 0
    assert written == [False, False, False]
    assert fleet.view(name).state == "RUNNING"


def test_what_a_step_did_stands_when_the_next_one_is_killed(fleet: Fleet) -> None:
    name = fleet.create("1.1.0")
    fleet.do("start", name)
    fleet.tick()
    device = fleet.in_state(name, E.OFFERED)[0]
    fleet.fail(name, device)
    opened: list[int] = []

    @contextmanager
    def dying() -> Iterator[Scope]:
        opened.append(1)
        if len(opened) > 1:
            raise KilledError
        with fleet.scope() as scope:
            yield scope

    ticks.tick(fleet.scope, dying)
    assert len(opened) == 2
    assert fleet.view(name).state == "HALTED"
    assert fleet.tick().offered == 0


def test_a_rollout_at_which_another_scheduler_works_is_left_to_it(
    fleet: Fleet, request: pytest.FixtureRequest
) -> None:
    name = fleet.create("1.1.0")
    fleet.do("start", name)
    with fleet.scope() as scope:
        assert leases.tick_alone(scope.tx, name)
        if scope.tx.dialect.name == "postgresql":
            assert fleet.tick().decisions == 0, "and it did not wait"
    assert fleet.tick().offered == 3
