"""Migrations from Python: bring a database to a revision, in one transaction."""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from control_plane.store.database import Database

# In a wheel the scripts lie inside the package, in a checkout beside it.
_PLACES = (
    Path(__file__).resolve().parent.parent / "migrations",
    Path(__file__).resolve().parents[2] / "migrations",
)
_LOCK = 7_031_726_021  # any constant: one migration at a time in one database


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database forward to `revision`; does nothing when it is there."""
    _run(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Take the database back to `revision` (``base`` for empty)."""
    _run(url, lambda config: command.downgrade(config, revision))


def current(url: str) -> str:
    """Return the database's revision; empty when nothing has migrated it."""
    database = Database(url)
    try:
        with database.reading() as tx:
            return MigrationContext.configure(tx).get_current_revision() or ""
    finally:
        database.close()


def head() -> str:
    """Return the newest revision that this code knows."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def _config() -> Config:
    config = Config()
    place = next((place for place in _PLACES if (place / "env.py").exists()), _PLACES[-1])
    config.set_main_option("script_location", str(place).replace("%", "%%"))
    return config


def _run(url: str, act: Callable[[Config], None]) -> None:
    config = _config()
    database = Database(url)
    try:
        with database.transaction() as tx:
            if not database.is_sqlite:
                # Several processes may start at once; SQLite's BEGIN IMMEDIATE already queues.
                tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            config.attributes["connection"] = tx
            act(config)
    finally:
        database.close()
