"""What it costs to remember: bytes a device, a report, a part in a rollout; and to forget again.

A private PostgreSQL with 100,000 devices and one rollout over all of them that has ended. Sizes are
rows with their indexes and what is stored out of line; `docs/capacity.md` multiplies them.
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from control_plane.store import devices, reports
from control_plane.store.database import Database, Transaction
from tests.benchmarks.fleet_reads import database_ms
from tests.benchmarks.million import connect, fleet
from tests.benchmarks.row import Row, row
from tests.support.services import PostgreSQL

DEVICES = 100_000
SCRIPT = Path(__file__).with_name("capacity.sql")
FORGOTTEN = 200_000
SLICE = 10_000
TOUCHED = 20_000
# name of the row: tables that hold it; of one of what it is
_KEPT = {
    "capacity_device_bytes": (("device", "device_label", "desired", "fleet_count"), "device"),
    "capacity_report_bytes": (("report_seen",), "report_seen"),
    "capacity_execution_bytes": (("execution", "execution_event", "device_history"), "execution"),
    "capacity_trial_bytes": (("bench", "bench_metric"), "bench"),
}


def rows() -> list[Row]:
    with fleet(DEVICES) as server:
        with connect(server) as raw:
            raw.execute("SET session_replication_role = replica")
            raw.execute(SCRIPT.read_text())
            raw.execute("VACUUM ANALYZE")
            _print_tables(raw)
            found = [
                row(name, _bytes(raw, tables) / _count(raw, one), "bytes")
                for name, (tables, one) in _KEPT.items()
            ]
            found.append(row("capacity_trial_series_bytes", _series(raw), "bytes"))
        return [*found, *_forgetting(server), _touching(server)]


def _bytes(raw: psycopg.Connection, tables: tuple[str, ...]) -> int:
    return sum(_one(raw, "SELECT pg_total_relation_size(%s::regclass)", table) for table in tables)


def _count(raw: psycopg.Connection, table: str) -> int:
    return _one(raw, "SELECT reltuples::bigint FROM pg_class WHERE oid = %s::regclass", table)


def _series(raw: psycopg.Connection) -> float:
    return _one(raw, "SELECT avg(pg_column_size(blocks))::bigint FROM bench WHERE id > %s", 0)


def _one(raw: psycopg.Connection, query: str, *values: str | int) -> int:
    found = raw.execute(query.encode(), values).fetchone()
    assert found is not None
    return int(found[0])


def _print_tables(raw: psycopg.Connection) -> None:
    for name, n, heap, indexes in raw.execute(
        "SELECT relname, reltuples::bigint, pg_table_size(oid), pg_indexes_size(oid) FROM pg_class"
        " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND reltuples > 1000"
        " ORDER BY relname"
    ):
        each = f"{heap / n:6.0f} B a row + {indexes / n:6.0f} B of indexes"
        print(f"  {name:18}{n:>9} rows: {each}", file=sys.stderr)


def _forgetting(server: PostgreSQL) -> list[Row]:
    """Forget reports in slices, beside dropping a partition that holds as many."""
    with connect(server) as raw:
        raw.execute(
            "CREATE TABLE parted (LIKE report_seen, PRIMARY KEY (device_id, boot, seq, at))"
            " PARTITION BY RANGE (at)"
        )
        raw.execute(
            "CREATE TABLE parted_old PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (MAXVALUE)"
        )
        raw.execute("INSERT INTO parted SELECT * FROM report_seen LIMIT %s", (FORGOTTEN,))
        dropped = _cpu(server, lambda: raw.execute("DROP TABLE parted_old"))
    before = datetime.now(UTC) - timedelta(days=30)  # noqa: TID251 - rows were dated by the database
    sliced = 0.0
    database = Database(server.url("fleet"))
    for _ in range(FORGOTTEN // SLICE):
        sliced += _cpu(server, lambda: _in(database, lambda tx: reports.forget(tx, before, SLICE)))
    database.close()
    with connect(server) as raw:
        vacuumed = _cpu(server, lambda: raw.execute("VACUUM report_seen"))
    per = 1_000_000 / FORGOTTEN / 1000
    return [
        row("capacity_forget_cpu_s_per_1m", (sliced + vacuumed) * per, "CPU s", "", dropped * per),
    ]


def _touching(server: PostgreSQL) -> Row:
    """Write signs of life, 500 devices a transaction, with every index that has to follow."""
    database = Database(server.url("fleet"))
    now = datetime.now(UTC)  # noqa: TID251 - newer than what the database dated
    ids = [f"edge-{number:07}" for number in range(1, TOUCHED + 1)]
    used = 0.0
    for start in range(0, TOUCHED, 500):
        some = ids[start : start + 500]
        used += _cpu(server, lambda: _in(database, lambda tx: devices.touch(tx, some, now)))  # noqa: B023 - called at once
    database.close()
    return row("capacity_heartbeats_cpu_s_per_1000", used / TOUCHED, "CPU s")


def _in(database: Database, act: Callable[[Transaction], object]) -> None:
    with database.transaction() as tx:
        act(tx)


def _cpu(server: PostgreSQL, act: Callable[[], object]) -> float:
    """Return the database's CPU of one act, in milliseconds."""
    before = database_ms(server)
    act()
    return database_ms(server) - before
