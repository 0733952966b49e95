"""A PostgreSQL that holds a large fleet, made inside the database: a million INSERTs take long."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from shutil import rmtree

import psycopg

from control_plane.store import migrate
from control_plane.store.database import Database
from control_plane.store.rollups import fold, repair
from tests.support import services

DEVICES = 1_000_000
SCRIPT = Path(__file__).with_name("million.sql")
MIGRATIONS = Path("migrations/versions")
KEPT = "flotilla-kept-fleet-"
# What a small server of a fleet would have; the rest is as `services` has it.
OPTIONS = (
    "shared_buffers=1GB",
    "maintenance_work_mem=512MB",
    "max_wal_size=8GB",
    "autovacuum=off",
    "random_page_cost=1.1",
)


# Its log would be half of what is kept.
MAKING = ("max_wal_size=512MB", "wal_level=minimal", "max_wal_senders=0")


@contextmanager
def fleet(devices: int = DEVICES) -> Iterator[services.PostgreSQL]:
    """Start a PostgreSQL whose database `fleet` holds this many devices.

    The first of the day makes them and leaves its data under the temporary folder (3 GB for a
    million); the others copy that.
    """
    server = services.postgresql(_kept(devices))
    for option in OPTIONS:
        server.argv += ["-c", option]
    try:
        yield server.start()
    finally:
        server.discard()


def _kept(devices: int) -> Path:
    """Return the data of a stopped server with such a fleet."""
    parts = [
        SCRIPT.read_text(),
        Path(__file__).read_text(),
        migrate.head(),
        services.find("initdb"),
    ]
    parts += [f"{path}{path.read_text()}" for path in sorted(MIGRATIONS.glob("*.py"))]
    # Its devices were seen minutes ago.
    parts.append(f"{datetime.now(UTC):%Y-%m-%d}")  # noqa: TID251 - the database's clock is real
    key = sha256("".join(parts).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir())
    kept = folder / f"{KEPT}{devices}-{key}"
    if not kept.exists():
        for other in folder.glob(f"{KEPT}{devices}-*"):
            rmtree(other, ignore_errors=True)
        print(f"  making {devices:,} devices ...", file=sys.stderr)
        server = _made(devices)
        server.stop()
        (server.folder / "data").rename(kept)
        rmtree(server.folder)
    return kept


def _made(devices: int) -> services.PostgreSQL:
    server = services.postgresql()
    for option in (*OPTIONS, *MAKING):
        server.argv += ["-c", option]
    try:
        server.start()
        with connect(server, "postgres") as admin:
            admin.execute("CREATE DATABASE fleet")
        migrate.upgrade(server.url("fleet"))
        with connect(server) as raw:
            load(raw, devices)
        database = Database(server.url("fleet"))
        with database.transaction() as tx:
            repair(tx)
            fold(tx, 100_000)
        database.close()
        with connect(server) as raw:
            raw.execute("VACUUM ANALYZE")
    except BaseException:
        server.discard()
        raise
    return server


def connect(server: services.PostgreSQL, name: str = "fleet") -> psycopg.Connection:
    """Connect without SQLAlchemy; every statement is its own transaction."""
    url = server.url(name).replace("+psycopg", "")
    return psycopg.connect(url, autocommit=True)


def load(raw: psycopg.Connection, devices: int) -> None:
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
