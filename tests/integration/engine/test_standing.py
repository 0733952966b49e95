"""Where executions stand: what the database derives is what the queries mean."""

from itertools import combinations
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text

from agent.protocol.messages import Event
from agent.protocol.words import ExecutionState
from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.domain import selector
from control_plane.domain.device import DeviceId
from control_plane.domain.rollout import IN_FLIGHT, STEPS, TERMINAL
from control_plane.services import executions
from control_plane.store import rollouts, schema, standing
from control_plane.store.database import Database, Transaction
from tests.integration.engine.conftest import START, Fleet

E = ExecutionState


def _one_of_each(tx: Transaction) -> None:
    rows = [
        {
            "id": state.value, "rollout": "r", "device_id": state.value, "wave": 0, "position": n,
            "blueprint": "b", "digest": "", "state": state.value, "updated_at": START,
        }
        for n, state in enumerate(E)
    ]  # fmt: skip
    tx.execute(insert(schema.execution), rows)


def test_the_database_derives_what_the_code_says(database: Database) -> None:
    with database.transaction() as tx:
        _one_of_each(tx)
        found = tx.execute(select(schema.execution.c.state, schema.execution.c.standing)).all()
    assert {row[0]: row[1] for row in found} == {state.value: standing.of(state) for state in E}
    assert {row[1] for row in found} == set(standing.ALL)


def test_the_condition_holds_for_exactly_the_states_that_it_names(database: Database) -> None:
    groups = (IN_FLIGHT, STEPS, TERMINAL, E, IN_FLIGHT - {E.OFFERED})
    wanted = [set(group) for group in groups]
    wanted += [set(some) for n in (1, 2) for some in combinations(E, n)]
    with database.transaction() as tx:
        _one_of_each(tx)
        for states in wanted:
            found = tx.scalars(select(schema.execution.c.id).where(standing.among(states)))
            assert set(found) == {state.value for state in states}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ('state = "STAGED"', {E.STAGED}),
        ('state = "FAILED"', {E.FAILED}),
        ('state != "QUEUED"', set(E) - {E.QUEUED}),
        ('not state = "QUEUED"', set(E) - {E.QUEUED}),
        ('not (state = "QUEUED" or state = "STAGED")', set(E) - {E.QUEUED, E.STAGED}),
        ('state : "S*"', {E.STAGED, E.SOAKING, E.SUCCEEDED, E.SUPERSEDED}),
        ('state = "STAGED" or device = "FAILED"', {E.STAGED, E.FAILED}),
        ('state : "S*" and not device = "STAGED"', {E.SOAKING, E.SUCCEEDED, E.SUPERSEDED}),
        ('state = "STAGED" and state = "FAILED"', set()),
        ('state = "UNHEARD_OF"', set()),
        ("wave = 0", set(E)),
        ("", set(E)),
    ],
)  # fmt: skip
def test_a_page_finds_what_its_filter_says_wherever_it_stands(
    database: Database, wanted: str, found: set[E]
) -> None:
    parsed = selector.parse(wanted, rollouts.EXECUTION_FIELDS, field="filter")
    with database.transaction() as tx:
        _one_of_each(tx)
        rows = rollouts.executions(tx, "r", parsed, START, after=None, limit=50)
        assert [row.state for row in rows] == [state for state in E if state in found]
        assert (
            rollouts.executions(tx, "r", parsed, START, after=(0, 5), limit=1)
            == ([row for row in rows if row.position > 5][:1])
        )


def test_a_step_in_flight_is_written_without_touching_an_index(
    postgres_url: str, tmp_path: Path
) -> None:
    """PostgreSQL's own count of updates that needed no new entry in any index (HOT)."""
    app = Application(Settings(data=tmp_path, database_url=postgres_url))
    fleet = Fleet(app)
    fleet.add_blueprints()
    for version in ("1.0.0", "1.1.0"):
        fleet.add_version(version)
    fleet.add_devices(2, runs="1.0.0")
    name = fleet.start("1.1.0", waves=[{"name": "all", "percent": 100}])
    device, part = next(iter(fleet.parts(name).items()))
    counted = text("SELECT pg_stat_get_xact_tuples_hot_updated('execution'::regclass)")
    said = (E.DOWNLOADING, E.STAGED, E.SOAKING, E.SUCCEEDED)
    hot = []
    for seq, state in enumerate(said):
        event = Event(
            boot=1, seq=seq, generation=part.generation, execution=part.id, state=state,
            digest=part.digest,
        )  # fmt: skip
        with fleet.scope() as scope:
            before = scope.tx.execute(counted).scalar_one()
            assert executions.apply(scope, [(DeviceId(device), event)]) == 1
            hot.append(scope.tx.execute(counted).scalar_one() - before)
    app.close()
    assert hot == [1, 1, 1, 0]
