"""Connections: reading only reads and ends in time; what the server has closed is not lent."""

from contextlib import suppress
from datetime import UTC, datetime

import psycopg
import pytest
from sqlalchemy import exc, func, insert, select, text

from control_plane.api.errors import status_of
from control_plane.domain.errors import TooSlowError
from control_plane.store.database import Database, Transaction, is_outage
from control_plane.store.schema import lease

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ENDLESS = text(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000000)"
    " SELECT count(*) FROM n"
)


def _write(tx: Transaction) -> None:
    tx.execute(insert(lease).values(name="a", holder="b", epoch=1, until=NOW))


def _count(tx: Transaction) -> int:
    return int(tx.execute(select(func.count()).select_from(lease)).scalar_one())


def test_who_only_reads_changes_nothing(database: Database) -> None:
    # PostgreSQL refuses it, SQLite takes it back.
    with suppress(exc.InternalError), database.reading() as tx:
        _write(tx)
    with database.reading() as tx:
        assert _count(tx) == 0


def test_who_reads_sees_what_was_committed_meanwhile(postgres_url: str) -> None:
    database = Database(postgres_url)
    with database.reading() as tx:
        assert _count(tx) == 0
        with database.transaction() as other:
            _write(other)
        assert _count(tx) == 1
    database.close()


def test_a_rehearsal_is_taken_back(database: Database) -> None:
    with database.rehearsing() as tx:
        _write(tx)
        assert _count(tx) == 1
    with database.reading() as tx:
        assert _count(tx) == 0


def test_a_question_that_takes_too_long_is_ended_and_says_so(database_url: str) -> None:
    database = Database(database_url, read_limit_s=0.1)
    with pytest.raises(TooSlowError, match="ask for fewer") as ended, database.reading() as tx:
        tx.execute(ENDLESS)
    assert is_outage(ended.value)
    assert status_of(ended.value) == 503
    with database.reading() as tx:
        assert _count(tx) == 0
    database.close()


def test_connections_that_the_server_has_closed_are_not_lent(postgres_url: str) -> None:
    database = Database(postgres_url)
    for _ in range(3):
        with database.reading() as one, database.reading() as two, database.transaction() as three:
            assert [_count(tx) for tx in (one, two, three)] == [0, 0, 0]
        with psycopg.connect(postgres_url.replace("+psycopg", "")) as raw:
            raw.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
    database.close()
