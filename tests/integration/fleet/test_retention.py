"""What is old is forgotten a stretch at a time; what somebody still needs stays."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Table, func, insert, select

from control_plane.bootstrap import Application
from control_plane.domain.rollout import ENDED, RolloutState
from control_plane.services import retention
from control_plane.store import idempotency, schema
from control_plane.store import retention as store
from control_plane.store.database import Database, Transaction

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
OLD = NOW - timedelta(days=400)
CUT = NOW - timedelta(days=365)
DIGEST = "d" * 64


def _rollout(tx: Transaction, name: str, state: str, ended_at: datetime | None) -> None:
    tx.execute(
        insert(schema.rollout).values(
            name=name, model="slm", version="1", spec={}, state=state, revision=1, machine={},
            plan={}, created_by="ada", created_at=OLD, ended_at=ended_at,
        )
    )  # fmt: skip
    tx.execute(
        insert(schema.device).values(
            id=f"of-{name}", state="active", hardware={}, secret_sha256=name,
            certificate_serial="1", enrolled_at=OLD,
        )
    )  # fmt: skip
    tx.execute(
        insert(schema.execution).values(
            id=f"e-{name}", rollout=name, device_id=f"of-{name}", wave=0, position=0,
            blueprint="pi", digest=DIGEST, state="SUCCEEDED", updated_at=OLD,
        )
    )  # fmt: skip


def _grow(tx: Transaction, name: str, at: datetime, times: int = 1) -> None:
    """Store what grows with a rollout: a step, a trial with its numbers, a decision."""
    for _ in range(times):
        number = tx.scalar(select(func.count()).select_from(schema.bench))
        tx.execute(
            insert(schema.execution_event).values(
                execution_id=f"e-{name}", at=at, before="OFFERED", after="DOWNLOADING"
            )
        )
        made = tx.scalar(
            insert(schema.bench)
            .values(
                device_id=f"of-{name}", boot=1, seq=number, execution_id=f"e-{name}", rollout=name,
                wave=0, blueprint="pi", candidate=DIGEST, verdict="pass", blocks={"a": [1.0]},
                at=at,
            )
            .returning(schema.bench.c.id)
        )  # fmt: skip
        tx.execute(
            insert(schema.bench_metric).values(
                bench_id=made, name="token_ms", unit="ms", candidate=1.0, n=1, verdict="pass"
            )
        )
        tx.execute(
            insert(schema.decision).values(
                rollout=name, at=at, wave=0, kind="hold", evidence={}, inputs={}
            )
        )


def _count(tx: Transaction, table: Table, **of: str) -> int:
    return tx.scalar(select(func.count()).select_from(table).filter_by(**of)) or 0


def _round(database: Database, name: str, limit: int = 3) -> int:
    """Sweep until the hand has gone round, each stretch in a transaction of its own."""
    forgotten = 0
    for _ in range(100):
        with database.transaction() as tx:
            found = store.sweep(tx, name, CUT, limit)
        forgotten += found.forgotten
        if found.round_done:
            return forgotten
    raise AssertionError("the hand never came round")


def test_only_what_belongs_to_a_rollout_that_ended_long_ago_is_forgotten(
    database: Database,
) -> None:
    with database.transaction() as tx:
        for state in RolloutState:
            _rollout(tx, state, state, OLD if state in ENDED else None)
            _grow(tx, state, OLD, 2)
    for name in ("execution_event", "bench", "decision"):
        assert _round(database, name, 5) == 2 * len(ENDED)
    with database.reading() as tx:
        for table in (schema.bench, schema.decision):
            kept = set(tx.scalars(select(table.c.rollout)))
            assert kept == {state.value for state in RolloutState} - ENDED
        stays = set(tx.scalars(select(schema.execution_event.c.execution_id)))
        assert stays == {f"e-{state}" for state in RolloutState} - {f"e-{s}" for s in ENDED}
        assert _count(tx, schema.execution) == len(RolloutState)


def test_a_rollout_that_ended_lately_keeps_even_its_oldest_rows(database: Database) -> None:
    with database.transaction() as tx:
        _rollout(tx, "one", "SUCCEEDED", NOW)
        _grow(tx, "one", OLD, 4)
    assert [_round(database, name) for name in ("execution_event", "bench", "decision")] == [0] * 3


def test_the_hand_goes_round_past_what_stays_and_finds_what_may_go_later(
    database: Database,
) -> None:
    with database.transaction() as tx:
        _rollout(tx, "runs", "RUNNING", None)
        _rollout(tx, "ended", "ABORTED", OLD)
        for _ in range(5):
            _grow(tx, "runs", OLD)
            _grow(tx, "ended", OLD)
        _grow(tx, "ended", NOW, 2)
    assert _round(database, "execution_event", 2) == 5
    with database.transaction() as tx:
        tx.execute(
            schema.rollout.update().where(schema.rollout.c.name == "runs").values(
                state="SUCCEEDED", ended_at=OLD
            )
        )  # fmt: skip
    assert _round(database, "execution_event", 2) == 5
    with database.reading() as tx:
        assert _count(tx, schema.execution_event) == 2


def test_one_stretch_looks_at_no_more_than_its_limit(database: Database) -> None:
    with database.transaction() as tx:
        _rollout(tx, "one", "SUCCEEDED", OLD)
        _grow(tx, "one", OLD, 10)
        assert store.sweep(tx, "bench", CUT, 4) == store.Stretch(4, round_done=False)
        assert _count(tx, schema.bench) == 6
        assert _count(tx, schema.bench_metric) == 6


def test_the_raw_series_of_a_trial_go_and_its_numbers_stay(database: Database) -> None:
    with database.transaction() as tx:
        _rollout(tx, "one", "SUCCEEDED", OLD)
        _grow(tx, "one", OLD, 3)
    assert _round(database, "bench_series", 10) == 3
    assert _round(database, "bench_series", 10) == 0
    with database.reading() as tx:
        assert set(map(str, tx.scalars(select(schema.bench.c.blocks)))) == {"{}"}
        assert _count(tx, schema.bench_metric) == 3


def test_a_device_keeps_how_it_came_and_what_it_runs_however_long_ago(database: Database) -> None:
    lines = ["enrolled", "active", "state", "active", "quarantined", "state"]
    with database.transaction() as tx:
        _rollout(tx, "one", "RUNNING", None)
        for kind in lines:
            row: dict[str, Any] = {"device_id": "of-one", "at": OLD, "kind": kind}
            tx.execute(insert(schema.device_history).values(**row))
    assert _round(database, "device_history", 2) == 4
    with database.reading() as tx:
        history = schema.device_history
        kept = tx.execute(select(history.c.kind, history.c.id).order_by(history.c.id)).all()
    assert [row.kind for row in kept] == ["enrolled", "active"]
    assert kept[1].id - kept[0].id == 3


def test_answers_to_repeated_requests_are_kept_for_a_day(database: Database) -> None:
    with database.transaction() as tx:
        for age, key in ((0, "new"), (2, "old")):
            idempotency.claim(tx, NOW - timedelta(days=age), f"ada-{age}", key, "r")
        assert store.forget_answers(tx, NOW, 10) == 1
        assert _count(tx, schema.idempotency, key="new") == 1


def test_every_table_has_a_memory_and_zero_is_for_ever(app: Application) -> None:
    ever = {name: 0 for name in type(app.settings).model_fields if name.endswith("_memory_s")}
    with app.scope("test") as scope:
        _rollout(scope.tx, "one", "SUCCEEDED", OLD)
        _grow(scope.tx, "one", OLD, 2)
        late = replace(scope, now=scope.now + timedelta(days=4000))
        forgetful = replace(late, settings=late.settings.model_copy(update=ever))
        for table in retention.TABLES:
            wanted = {"idempotency": 0, "device_history": 0}.get(table, 2)
            assert retention.sweep(forgetful, table) == 0
            assert retention.sweep(late, table) == wanted
