"""However often and in whatever order reports come, each counts once."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import func, insert, select, text

from agent.protocol.messages import Bench, Event, Metric
from agent.protocol.words import ExecutionState, Reason, Verdict
from control_plane.bootstrap import Application
from control_plane.domain.device import DeviceId
from control_plane.services import inventory, reports
from control_plane.services.incoming import Incoming
from control_plane.services.reports import Applied
from control_plane.store import schema
from control_plane.store.database import Transaction, is_outage
from tests.integration.transport.fleets import StoredBundle, bundle, enrol_many, offer, up

STATES = (
    ExecutionState.DOWNLOADING,
    ExecutionState.STAGED,
    ExecutionState.BENCHMARKING,
    ExecutionState.ACTIVATING,
    ExecutionState.SOAKING,
    ExecutionState.SUCCEEDED,
)
BENCH_SEQ = len(STATES) + 1
EACH = BENCH_SEQ


def _story(device: DeviceId, execution: str, stored: StoredBundle) -> list[Incoming]:
    """Return what a device that succeeds reports."""
    said = [
        up(
            device,
            "events",
            Event(
                boot=3,
                seq=seq,
                generation=1,
                execution=execution,
                state=state,
                reason=Reason.SOAKED if state is ExecutionState.SUCCEEDED else Reason.NONE,
                digest=stored.digest if seq > 4 else "",
            ),
        )
        for seq, state in enumerate(STATES, start=1)
    ]
    metric = Metric(
        name="token_ms",
        unit="ms",
        candidate=9.0,
        incumbent=10.0,
        ratio=0.9,
        ci_low=0.88,
        ci_high=0.92,
        tolerance=0.1,
        n=5,
        verdict=Verdict.PASS,
    )
    bench = Bench(
        boot=3,
        seq=BENCH_SEQ,
        generation=1,
        execution=execution,
        candidate=stored.digest,
        verdict=Verdict.PASS,
        metrics=[metric],
    )
    return [*said, up(device, "bench", bench)]


def _apply(app: Application, batch: Sequence[Incoming]) -> Applied:
    """Apply as the inbox does: again when the database, not the data, was at fault."""
    while True:
        try:
            with app.scope("gateway") as scope:
                return reports.apply_batch(scope, batch)
        except Exception as error:
            if not is_outage(error):
                raise


def _batches(messages: Sequence[Incoming], size: int) -> Iterator[Sequence[Incoming]]:
    for start in range(0, len(messages), size):
        yield messages[start : start + size]


def _facts(app: Application) -> dict[str, object]:
    """Return everything that a report counted twice would change."""
    with app.database.reading() as tx:
        states = select(schema.execution.c.state, func.count()).group_by(schema.execution.c.state)
        tallies = select(schema.tally.c.state, schema.tally.c.n).where(schema.tally.c.n > 0)
        measured = select(schema.bench_tally.c.metric, schema.bench_tally.c.n)
        active = select(func.count()).where(schema.device_history.c.kind == "active")
        benches = select(func.count()).select_from(schema.bench)
        seen = select(func.count()).select_from(schema.report_seen)
        return {
            "states": {row[0]: row[1] for row in tx.execute(states)},
            "tallies": {row[0]: row[1] for row in tx.execute(tallies)},
            "measured": {metric: n for metric, n in tx.execute(measured) if metric == "token_ms"},
            "active": tx.execute(active).scalar_one(),
            "benches": tx.execute(benches).scalar_one(),
            "seen": tx.execute(seen).scalar_one(),
        }


def _expected(devices: int) -> dict[str, object]:
    return {
        "states": {"SUCCEEDED": devices},
        "tallies": {"SUCCEEDED": devices},
        "measured": {"token_ms": devices},
        "active": devices,
        "benches": devices,
        "seen": devices * EACH,
    }


def _fleet(app: Application, count: int) -> list[Incoming]:
    devices = enrol_many(app, count)
    stored = bundle(app)
    executions = offer(app, devices, stored)
    return [m for d in devices for m in _story(d, executions[d], stored)]


def test_in_one_batch_and_in_order(app: Application) -> None:
    applied = _apply(app, _fleet(app, 3))
    assert applied.counted == 3 * EACH
    assert applied.refused == {}
    assert _facts(app) == _expected(3)


def test_every_message_three_times_in_one_batch(app: Application) -> None:
    applied = _apply(app, _fleet(app, 3) * 3)
    assert applied.counted == 3 * EACH
    assert {len(pairs) for pairs in applied.acks.values()} == {EACH}
    assert _facts(app) == _expected(3)


def test_a_repeat_is_acknowledged_and_counts_nothing(app: Application) -> None:
    messages = _fleet(app, 2)
    first = _apply(app, messages)
    again = _apply(app, messages)
    assert again.counted == 0
    assert again.acks == first.acks
    assert _facts(app) == _expected(2)


@pytest.mark.parametrize("seed", range(5))
def test_in_any_order_one_by_one(sqlite_app: Application, seed: int) -> None:
    messages = _fleet(sqlite_app, 2) * 2
    random.Random(seed).shuffle(messages)
    for message in messages:
        _apply(sqlite_app, [message])
    assert _facts(sqlite_app) == _expected(2)


def test_a_batch_that_fails_leaves_nothing_and_can_come_again(app: Application) -> None:
    messages = _fleet(app, 2)

    with app.database.engine.connect() as connection, connection.begin() as cut:
        with app.reading("gateway") as other:
            scope = replace(other, tx=Transaction(connection))
        reports.apply_batch(scope, messages)
        cut.rollback()
    assert _facts(app)["seen"] == 0
    assert _apply(app, messages).counted == 2 * EACH
    assert _facts(app) == _expected(2)


def test_sixty_four_reporters_at_once_with_replays(app: Application) -> None:
    reporters, devices, copies = 64, 24, 6
    messages = _fleet(app, devices) * copies
    random.Random(64).shuffle(messages)
    size = len(messages) // reporters + 1
    with ThreadPoolExecutor(reporters) as pool:
        results = list(pool.map(lambda batch: _apply(app, batch), _batches(messages, size)))
    assert sum(result.counted for result in results) == devices * EACH
    acknowledged = {
        (device, pair)
        for result in results
        for device, pairs in result.acks.items()
        for pair in pairs
    }
    assert len(acknowledged) == devices * EACH
    assert _facts(app) == _expected(devices)


def test_one_device_whose_reports_reach_eight_gateways_at_once(app: Application) -> None:
    messages = _fleet(app, 1)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: _apply(app, messages), range(8)))
    assert sum(result.counted for result in results) == EACH
    assert _facts(app) == _expected(1)


def test_what_a_quarantined_device_reports_counts_nowhere(app: Application) -> None:
    messages = _fleet(app, 2)
    with app.scope("ops") as scope:
        inventory.quarantine(scope, "edge-000", reason="stolen")
    applied = _apply(app, messages)
    assert applied.refused == {"device.quarantined": EACH}
    assert set(applied.acks) == {"edge-001"}
    assert applied.counted == EACH
    with app.scope("ops") as scope:
        inventory.unquarantine(scope, "edge-000")
    assert _apply(app, messages).counted == EACH


def test_what_nobody_enrolled_reports_counts_nowhere(app: Application) -> None:
    messages = _fleet(app, 1)
    stranger = [m._replace(topic=m.topic.replace("edge-000", "edge-999")) for m in messages]
    applied = _apply(app, stranger)
    assert (applied.refused, applied.acks) == ({"device.unknown": EACH}, {})
    assert _facts(app)["seen"] == 0


def test_an_event_of_another_devices_execution_changes_nothing(app: Application) -> None:
    messages = _fleet(app, 2)
    of_one = [m for m in messages if "edge-001" in m.topic]
    forged = [m._replace(topic=m.topic.replace("edge-001", "edge-000")) for m in of_one]
    _apply(app, forged)
    assert _facts(app)["tallies"] == {"OFFERED": 2}


def test_a_schema_that_is_not_there_yet_is_no_fault_of_the_reports(app: Application) -> None:
    messages = _fleet(app, 1)
    with app.database.transaction() as tx:
        tx.execute(text("ALTER TABLE report_seen RENAME TO later"))
    with pytest.raises(Exception, match="report_seen") as failure, app.scope("gateway") as scope:
        reports.apply_batch(scope, messages)
    assert is_outage(failure.value)
    with app.database.transaction() as tx:
        tx.execute(text("ALTER TABLE later RENAME TO report_seen"))
    assert _apply(app, messages).counted == EACH


def test_a_value_that_no_column_takes_is_no_outage(app: Application) -> None:
    row = {"device_id": "d", "boot": 1, "seq": 1, "at": None}
    with (
        pytest.raises(Exception, match="at") as failure,
        app.database.transaction() as tx,
    ):
        tx.execute(insert(schema.report_seen), row)
    assert not is_outage(failure.value)
