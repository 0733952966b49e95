"""The database: connections, transactions, and the one place that knows the dialects."""

import select
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, NewType

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.engine import make_url
from sqlalchemy.pool import ConnectionPoolEntry

from control_plane.domain.errors import TooSlowError

Transaction = NewType("Transaction", Connection)
"""An open transaction; services and store functions take one and never end it."""

BUSY_MS = 20_000
READ_LIMIT_S = 5.0
"""Where nothing else is set; `Settings.read_limit_s` is the operator's."""
TRUSTED_S = 30.0
"""A connection unused for longer is asked whether it still works: a firewall may have forgot it."""
_LOOK_EVERY = 100_000  # steps of SQLite's machine: some milliseconds
_JSON = msgspec.json.decode  # ten times as fast as the standard library's
_FOR_PAGES = {
    "default_transaction_read_only": "on",
    # What a page asks is over in milliseconds: starting workers and compiling take longer.
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    # A rare version and a common one want different indexes; a plan for any takes neither.
    "plan_cache_mode": "force_custom_plan",
}


class Database:
    """One database: SQLite (WAL, `BEGIN IMMEDIATE`) or PostgreSQL (psycopg 3).

    Args:
        url: SQLAlchemy URL, such as ``sqlite:////path/flotilla.db`` or
            ``postgresql+psycopg://user@host/name``.
        read_limit_s: `reading` ends what takes longer; 0: nothing.
    """

    def __init__(self, url: str, *, read_limit_s: float = READ_LIMIT_S) -> None:
        self.url = url
        self.read_limit_s = read_limit_s
        self.engine: Engine = _engine(url)
        self._readers = self.engine if self.is_sqlite else _readers(url, read_limit_s)

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
        """Open what only reads, and only for so long.

        On PostgreSQL each statement sees what is committed when it begins, as in any transaction
        of ours, and the server refuses to write: so there is no BEGIN and no ROLLBACK, two trips
        to the server and back less. On SQLite it is a transaction that takes no writer's lock.

        Raises:
            TooSlowError: it took longer than the limit; nobody works on it any more.
        """
        try:
            with (
                self._readers.connect().execution_options(flotilla_read=True) as connection,
                _limited(connection, self.read_limit_s if self.is_sqlite else 0.0),
            ):
                yield Transaction(connection)
        except exc.DBAPIError as error:
            if not _is_too_slow(error):
                raise
            raise TooSlowError(
                f"the search was ended after {self.read_limit_s:g} s: ask for fewer, by id, "
                "blueprint, version, health, last_seen or a label"
            ) from error

    @contextmanager
    def rehearsing(self) -> Iterator[Transaction]:
        """Open a transaction that is taken back at its end, with no limit of time.

        For a plan that is only shown, which stands in temporary tables, and for a look at
        everything.
        """
        with self.engine.connect().execution_options(flotilla_read=True) as connection:
            yield Transaction(connection)

    def ping(self) -> None:
        """Raise unless the database answers."""
        with self.reading() as tx:
            tx.exec_driver_sql("SELECT 1")

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()
        self._readers.dispose()


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
    kinds = exc.DBAPIError | exc.TimeoutError | exc.DisconnectionError | TooSlowError
    return isinstance(error, kinds)


def is_lock_timeout(error: BaseException) -> bool:
    """Return whether somebody else held a lock for too long: no fault of the database."""
    code = getattr(getattr(error, "orig", None), "sqlstate", None)
    return code == "55P03"  # lock_not_available


def _is_too_slow(error: exc.DBAPIError) -> bool:
    cause = error.orig
    code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
    return code in ("57014", "SQLITE_INTERRUPT")  # query_canceled


def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        engine = create_engine(url, pool_size=10, max_overflow=20, json_deserializer=_JSON)
        _check_when_borrowed(engine)
        return engine
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


def _readers(url: str, limit_s: float) -> Engine:
    """Return connections to PostgreSQL on which each statement is a transaction that only reads."""
    engine = create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        pool_size=10,
        max_overflow=10,
        json_deserializer=_JSON,
    )

    @event.listens_for(engine, "connect")
    def _configure(raw: Any, _record: Any) -> None:
        raw.autocommit = True
        settings = _FOR_PAGES | {"statement_timeout": str(round(limit_s * 1000))}
        raw.execute("; ".join(f"SET {name} = {value}" for name, value in settings.items()))

    _check_when_borrowed(engine)
    return engine


def _check_when_borrowed(engine: Engine) -> None:
    """Do not lend a connection that its server has closed.

    SQLAlchemy's own check asks the server each time, which costs as much as a small query. The
    socket knows: whatever an idle connection has to read is a goodbye, or rare.
    """

    @event.listens_for(engine, "checkin")
    def _note(_raw: Any, record: ConnectionPoolEntry) -> None:
        record.info["returned"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _check(raw: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        returned = record.info.get("returned")
        if returned is None or (time.monotonic() - returned < TRUSTED_S and _is_quiet(raw)):
            return
        try:
            engine.dialect.do_ping(raw)
        except engine.dialect.loaded_dbapi.Error as error:
            # The others are no better: the pool makes new ones, this one at once.
            raise exc.InvalidatePoolError from error


def _is_quiet(raw: Any) -> bool:
    if raw.closed:
        return False
    socket = select.poll()
    socket.register(raw.pgconn.socket, select.POLLIN)
    return not socket.poll(0)


@contextmanager
def _limited(connection: Connection, limit_s: float) -> Iterator[None]:
    """Interrupt what SQLite does for longer, as the server's timeout does; 0: never."""
    if not limit_s:
        yield
        return
    raw: Any = connection.connection.driver_connection
    ends = time.monotonic() + limit_s
    raw.set_progress_handler(lambda: time.monotonic() > ends, _LOOK_EVERY)
    try:
        yield
    finally:
        raw.set_progress_handler(None, 0)


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
