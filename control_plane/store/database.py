"""The database: connections, transactions, and the one place that knows the dialects."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, NewType

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.engine import make_url

Transaction = NewType("Transaction", Connection)
"""An open transaction; services and store functions take one and never end it."""

BUSY_MS = 20_000


class Database:
    """One database: SQLite (WAL, `BEGIN IMMEDIATE`) or PostgreSQL (psycopg 3).

    Args:
        url: SQLAlchemy URL, such as ``sqlite:////path/flotilla.db`` or
            ``postgresql+psycopg://user@host/name``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine: Engine = _engine(url)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Open a writing transaction; commits at the end, rolls back on an exception."""
        with self.engine.begin() as connection:
            yield Transaction(connection)

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """Open a transaction for reading; on SQLite it does not take the writer's lock."""
        with self.engine.connect().execution_options(flotilla_read=True) as connection:
            yield Transaction(connection)

    def ping(self) -> None:
        """Raise unless the database answers."""
        with self.reading() as tx:
            tx.exec_driver_sql("SELECT 1")

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def is_outage(error: BaseException) -> bool:
    """Return whether the database is at fault (down, locked, not migrated), not the data.

    Then the same work may succeed later; otherwise it will fail again.
    """
    if isinstance(error, exc.DataError | exc.IntegrityError):
        return False
    if isinstance(error, exc.ProgrammingError):
        # With a code the server answered: no such table, no permission. Without one the driver
        # could not even send the values.
        return getattr(error.orig, "sqlstate", None) is not None
    return isinstance(error, exc.DBAPIError | exc.TimeoutError | exc.DisconnectionError)


def is_lock_timeout(error: BaseException) -> bool:
    """Return whether somebody else held a lock for too long: no fault of the database."""
    code = getattr(getattr(error, "orig", None), "sqlstate", None)
    return code == "55P03"  # lock_not_available


def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20)
    engine = create_engine(url, connect_args={"timeout": BUSY_MS / 1000})

    @event.listens_for(engine, "connect")
    def _configure(raw: Any, _record: Any) -> None:
        # Hand BEGIN to us: the driver's own would be deferred, and a deferred reader that
        # becomes a writer fails with SQLITE_BUSY at once instead of waiting.
        raw.isolation_level = None
        cursor = raw.cursor()
        _use_wal(cursor)
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        cursor.close()
        # What PostgreSQL has and the order of a plan needs.
        raw.create_function("flotilla_sha256", 1, _sha256, deterministic=True)
        raw.create_function("flotilla_number", 1, _number, deterministic=True)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("flotilla_read", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Switch the file to write-ahead logging, which it remembers from then on.

    Of several connections that switch a new file at once, SQLite refuses all but one without
    waiting (its busy handler cannot help where both hold the lock that the other one needs), so
    the others ask again.
    """
    deadline = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _sha256(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _number(digits: str) -> int:
    return int(digits, 16)
