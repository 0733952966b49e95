"""Counts per rollout, wave, blueprint and state: changed only by whoever moves the rows.

Whoever does holds the lock of the rollout, so nobody waits for one of these rows.
"""

from collections.abc import Mapping
from functools import cache

from sqlalchemy import TextClause, bindparam, func, select, text

from agent.protocol.words import ExecutionState
from control_plane.store.bulk import as_records, records
from control_plane.store.database import Transaction
from control_plane.store.schema import execution, tally

Key = tuple[str, int, str, str]


def count_down(tx: Transaction, counts: Mapping[Key, int]) -> None:
    """Take rows that left a state out of its count."""
    if counts:
        tx.execute(_down(tx.dialect.name), {"rows": _rows(counts)})


def count_up(tx: Transaction, counts: Mapping[Key, int]) -> None:
    """Add rows that entered a state to its count."""
    if counts:
        tx.execute(_up(tx.dialect.name), {"rows": _rows(counts)})


def _rows(counts: Mapping[Key, int]) -> str:
    names = ("rollout", "wave", "blueprint", "state", "n")
    return as_records(
        [dict(zip(names, (*key, n), strict=True)) for key, n in sorted(counts.items())]
    )


_COLUMNS = {
    "rollout": "text", "wave": "integer", "blueprint": "text", "state": "text", "n": "integer",
}  # fmt: skip


@cache
def _down(dialect: str) -> TextClause:
    gone = records(dialect, "rows", **_COLUMNS)
    same = " AND ".join(
        f"tally.{key} = rows.{key}" for key in ("rollout", "wave", "blueprint", "state")
    )
    return text(f"UPDATE tally SET n = tally.n - rows.n FROM {gone} WHERE {same}")  # noqa: S608 - our own words


@cache
def _up(dialect: str) -> TextClause:
    come = records(dialect, "rows", **_COLUMNS)
    return text(
        "INSERT INTO tally (rollout, wave, blueprint, state, n)"  # noqa: S608 - our own words
        f" SELECT rollout, wave, blueprint, state, rows.n FROM {come} WHERE true"
        " ON CONFLICT (rollout, wave, blueprint, state) DO UPDATE SET n = tally.n + excluded.n"
    )


# Built once, too: every tick of every rollout reads them.
_READ = (
    select(tally.c.wave, tally.c.blueprint, tally.c.state, tally.c.n)
    .where(tally.c.rollout == bindparam("of"), tally.c.n > 0)
    .order_by(tally.c.wave, tally.c.blueprint, tally.c.state)
)


def read(tx: Transaction, name: str) -> list[tuple[int, str, ExecutionState, int]]:
    """Return (wave, blueprint, state, n), in that order."""
    rows = tx.execute(_READ, {"of": name})
    return [(row[0], row[1], ExecutionState(row[2]), row[3]) for row in rows]


def recount(tx: Transaction, name: str) -> list[tuple[int, str, ExecutionState, int]]:
    """Return what `tallies` must say, counted from the rows: a check, never a hot path."""
    keys = (execution.c.wave, execution.c.blueprint, execution.c.state)
    query = (
        select(*keys, func.count())
        .where(execution.c.rollout == name)
        .group_by(*keys)
        .order_by(*keys)
    )
    return [(row[0], row[1], ExecutionState(row[2]), row[3]) for row in tx.execute(query)]
