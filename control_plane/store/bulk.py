"""Statements over many rows: chunks of keys, inserts that skip what exists, rows as one value."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import msgspec
from sqlalchemy import ColumnElement, String, Table, any_, bindparam, func, literal, select, true
from sqlalchemy.dialects import postgresql, sqlite

from control_plane.store.database import Transaction

T = TypeVar("T")

# Both databases limit the parameters of one statement (SQLite 32,766, PostgreSQL 65,535).
MAX_KEYS = 5_000


def chunks(items: Sequence[T], size: int = MAX_KEYS) -> Iterator[Sequence[T]]:
    """Yield `items` in runs of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def among(tx: Transaction, column: ColumnElement[str], keys: Sequence[str]) -> ColumnElement[bool]:
    """Return the condition that a column has one of `keys`, one parameter where arrays exist."""
    if tx.dialect.name == "postgresql":
        return column == any_(literal(list(keys), postgresql.ARRAY(String)))
    return column.in_(keys)


def among_bound(dialect: str, column: ColumnElement[str], name: str) -> ColumnElement[bool]:
    """Return the condition of `among` for a statement that is built once: keys bound to `name`."""
    if dialect == "postgresql":
        return column == any_(bindparam(name, type_=postgresql.ARRAY(String)))
    return column.in_(bindparam(name, expanding=True))


def plan_anew(tx: Transaction) -> None:
    """Let PostgreSQL plan the rest of the transaction's statements by the tables as they are now.

    Else a connection keeps a plan from when a table was small, and reads the whole of it in each
    statement while it grows. For few and large statements.
    """
    if tx.dialect.name == "postgresql":
        tx.execute(select(func.set_config("plan_cache_mode", "force_custom_plan", true())))


@cache
def _ignoring(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that skips rows whose key is there already."""
    if dialect == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def insert_new(tx: Transaction, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose keys are not there yet."""
    if rows:
        # A list makes the driver's executemany; multi-row VALUES costs ten times as much.
        tx.execute(_ignoring(tx.dialect.name, table), list(rows))


def insert_one(tx: Transaction, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert a row; False when its key is taken."""
    # psycopg's count of an INSERT is lost with its cursor unless it is asked for.
    counted = {"preserve_rowcount": True}
    done = tx.execute(_ignoring(tx.dialect.name, table), dict(row), execution_options=counted)
    return done.rowcount == 1


def records(dialect: str, name: str, /, **columns: str) -> str:
    """Return a FROM item that reads rows from the JSON text bound to `name`.

    One value for a whole batch: it costs the client a tenth of a parameter each, and one statement
    works for any number of rows, on both databases.

    Args:
        dialect: the database's.
        name: the parameter's, and the item's.
        columns: PostgreSQL types by column.
    """
    if dialect == "postgresql":
        typed = ", ".join(f"{column} {kind}" for column, kind in columns.items())
        return f"json_to_recordset(CAST(:{name} AS json)) AS {name}({typed})"
    read = ", ".join(f"json_extract(value, '$.{column}') AS {column}" for column in columns)
    return f"(SELECT {read} FROM json_each(:{name})) AS {name}"  # noqa: S608 - our own words


def as_records(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as `records` reads them."""
    return msgspec.json.encode(rows).decode()
