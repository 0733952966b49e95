"""A PostgreSQL that holds a large fleet, made inside the database: a million INSERTs take long."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from control_plane.store import migrate
from control_plane.store.database import Database
from control_plane.store.rollups import fold, repair
from tests.support import services

DEVICES = 1_000_000
SCRIPT = Path(__file__).with_name("million.sql")


@contextmanager
def fleet(devices: int = DEVICES) -> Iterator[services.PostgreSQL]:
    """Start a PostgreSQL whose database `fleet` holds this many devices."""
    server = services.postgresql()
    # What a small server of a fleet would have; the rest is as `services` has it.
    for option in ("shared_buffers=1GB", "maintenance_work_mem=512MB", "max_wal_size=8GB"):
        server.argv += ["-c", option]
    server.argv += ["-c", "autovacuum=off", "-c", "random_page_cost=1.1"]
    try:
        server.start()
        with connect(server, "postgres") as admin:
            admin.execute("CREATE DATABASE fleet")
        migrate.upgrade(server.url("fleet"))
        with connect(server) as raw:
            _load(raw, devices)
        database = Database(server.url("fleet"))
        with database.transaction() as tx:
            repair(tx)
            fold(tx, 100_000)
        database.close()
        with connect(server) as raw:
            raw.execute("VACUUM ANALYZE")
        yield server
    finally:
        server.discard()


def connect(server: services.PostgreSQL, name: str = "fleet") -> psycopg.Connection:
    """Connect without SQLAlchemy; every statement is its own transaction."""
    url = server.url(name).replace("+psycopg", "")
    return psycopg.connect(url, autocommit=True)


def _load(raw: psycopg.Connection, devices: int) -> None:
    """Fill tables without their indexes, then make those: several times as fast."""
    tables = ["device", "device_label"]
    found = raw.execute(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = ANY(%s::regclass[]) AND NOT indisprimary AND NOT indisunique",
        [tables],
    ).fetchall()
    for name, _ in found:
        raw.execute(f"DROP INDEX {name}")
    # The rows are right by construction: no trigger checks each of their foreign keys.
    raw.execute("SET session_replication_role = replica")
    raw.execute(SCRIPT.read_text().replace(":devices", str(devices)))
    raw.execute("RESET session_replication_role")
    for _, definition in found:
        raw.execute(definition)
