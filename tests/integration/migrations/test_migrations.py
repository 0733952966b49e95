"""Migrations make the schema that the code expects, forward and back, on both databases."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from psycopg import sql
from sqlalchemy import exc, inspect, text

from control_plane.store import migrate
from control_plane.store.database import Database
from control_plane.store.schema import metadata
from tests.support.services import PostgreSQL


@pytest.fixture
def empty_postgres(postgres: PostgreSQL) -> Iterator[Database]:
    """An empty PostgreSQL database."""
    name = sql.Identifier(f"empty_{uuid.uuid4().hex}")
    _admin(postgres, sql.SQL("CREATE DATABASE {}").format(name))
    database = Database(postgres.url(name.as_string().strip('"')))
    yield database
    database.close()
    _admin(postgres, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
def empty_sqlite(tmp_path: Path) -> Iterator[Database]:
    """An empty SQLite database."""
    database = Database(f"sqlite:///{tmp_path}/empty.db")
    yield database
    database.close()


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest) -> Database:
    """An empty database of each kind in turn."""
    database: Database = request.getfixturevalue(f"empty_{request.param}")
    return database


def _admin(server: PostgreSQL, statement: sql.Composed) -> None:
    url = server.url().replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def _differences(database: Database) -> list[Any]:
    with database.reading() as tx:
        context = MigrationContext.configure(tx, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))


def _tables(database: Database) -> set[str]:
    with database.reading() as tx:
        return set(inspect(tx).get_table_names()) - {"alembic_version"}


def _checks(database: Database) -> dict[str, set[str]]:
    with database.reading() as tx:
        found = inspect(tx)
        return {
            table: {str(check["name"]) for check in found.get_check_constraints(table)}
            for table in metadata.tables
        }


def test_the_migrated_schema_is_the_one_in_the_code(empty: Database) -> None:
    migrate.upgrade(empty.url)
    assert _differences(empty) == []
    assert _tables(empty) == set(metadata.tables)


def test_check_constraints_which_no_comparison_sees_are_there_too(empty: Database) -> None:
    migrate.upgrade(empty.url)
    migrated = _checks(empty)
    migrate.downgrade(empty.url, "base")
    metadata.create_all(empty.engine)
    assert migrated == _checks(empty)
    assert any(migrated.values())


def test_a_missing_column_would_be_seen(empty: Database) -> None:
    migrate.upgrade(empty.url)
    with empty.transaction() as tx:
        tx.execute(text("ALTER TABLE device DROP COLUMN agent_version"))
    assert _differences(empty) != []


def test_down_to_nothing_and_up_again(empty: Database) -> None:
    migrate.upgrade(empty.url)
    assert migrate.current(empty.url) == migrate.head()
    migrate.downgrade(empty.url, "base")
    assert migrate.current(empty.url) == ""
    assert _tables(empty) == set()
    migrate.upgrade(empty.url)
    assert _differences(empty) == []


def test_each_revision_goes_back_to_the_one_before(empty: Database) -> None:
    migrate.upgrade(empty.url)
    revisions = []
    while revision := migrate.current(empty.url):
        revisions.append(revision)
        migrate.downgrade(empty.url, "-1")
    assert revisions[0] == migrate.head()
    assert _tables(empty) == set()


def test_upgrading_twice_changes_nothing(empty: Database) -> None:
    migrate.upgrade(empty.url)
    migrate.upgrade(empty.url)
    assert migrate.current(empty.url) == migrate.head()


def test_processes_that_start_together_migrate_once(empty: Database) -> None:
    start = threading.Barrier(4)

    def upgrade(_: int) -> None:
        start.wait()
        migrate.upgrade(empty.url)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade, range(4)))
    assert _differences(empty) == []


def test_a_new_sqlite_file_is_opened_by_many_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(6)

    def open_new(file: Path) -> None:
        start.wait()
        database = Database(f"sqlite:///{file}")
        with database.transaction() as tx:
            tx.execute(text("CREATE TABLE IF NOT EXISTS opened (id INTEGER)"))
        database.close()

    with ThreadPoolExecutor(6) as pool:
        for number in range(60):  # one round in twenty failed before `_use_wal` asked again
            list(pool.map(open_new, [tmp_path / f"{number}.db"] * 6))


def test_a_migration_gives_up_rather_than_wait_behind_a_lock(empty_postgres: Database) -> None:
    migrate.upgrade(empty_postgres.url)
    with empty_postgres.transaction() as other:
        other.execute(text("LOCK TABLE device IN ACCESS SHARE MODE"))
        with pytest.raises(exc.OperationalError, match="lock timeout"):
            migrate.downgrade(empty_postgres.url, "base")
    assert migrate.current(empty_postgres.url) == migrate.head()
    assert _tables(empty_postgres) == set(metadata.tables)


OF_0006 = """
INSERT INTO device (id, state, hardware, agent_version, secret_sha256, certificate_serial,
  enrolled_at, online, connection, boot, state_seq, generation, digest, last_known_good, healthy)
  VALUES ('d', 'active', '{}', '', 's', '1', '2026-11-21', false, 0, 0, 0, 0, '', '', true);
INSERT INTO rollout (name, model, version, spec, state, state_reason, revision, wave, machine,
  plan, created_by, created_at)
  VALUES ('r', 'm', '1', '{}', 'RUNNING', '', 1, 0, '{}', '{}', 'x', '2026-11-21');
INSERT INTO execution (id, rollout, device_id, wave, position, blueprint, digest, previous, state,
  reason, generation, revert_generation, reverted, updated_at)
  VALUES ('e', 'r', 'd', 0, 0, 'b', '', '', 'OFFERED', '', 1, 0, false, '2026-11-21');
INSERT INTO execution_event (execution_id, at, before, after, reason, digest)
  VALUES ('e', '2026-11-21', 'QUEUED', 'OFFERED', '', '')
"""


def test_what_happened_to_executions_is_there_after_their_table_is_made_anew(
    empty: Database,
) -> None:
    counted = text("SELECT count(*) FROM execution_event e JOIN execution x ON x.id = 'e'")
    migrate.upgrade(empty.url, "0006")
    with empty.transaction() as tx:
        for statement in OF_0006.split(";"):
            tx.execute(text(statement))
    migrate.upgrade(empty.url)
    with empty.transaction() as tx:
        assert tx.execute(counted).scalar_one() == 1
    migrate.downgrade(empty.url, "0006")
    with empty.transaction() as tx:
        assert tx.execute(counted).scalar_one() == 1
