"""How a migration reaches the database: an open connection, else FLOTILLA_DATABASE_URL."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection, text

from control_plane.config import Settings
from control_plane.store.database import Database
from control_plane.store.schema import UtcDateTime, metadata

# A migration runs beside the previous release: rather fail than stop the fleet behind a lock.
LOCK_TIMEOUT = "4s"
STATEMENT_TIMEOUT = "60s"


def _render(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write our own column types by their plain names."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # LOCAL: ends with the transaction, never leaks into a pooled connection.
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_item=_render,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _run() -> None:
    given = context.config.attributes.get("connection")
    if given is not None:
        _migrate(given)
        return
    database = Database(Settings().sqlalchemy_url)
    try:
        with database.transaction() as connection:
            _migrate(connection)
    finally:
        database.close()


_run()
