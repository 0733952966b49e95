"""Counts per rollout, wave, blueprint and state: changed only by whoever moves the rows."""

from collections.abc import Mapping
from functools import cache

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from agent.protocol.words import ExecutionState
from control_plane.store.database import Transaction
from control_plane.store.schema import execution, tally

Key = tuple[str, int, str, str]


# Built once: these run for every report of every device.
_DOWN = (
    update(tally)
    .where(
        tally.c.rollout == bindparam("of_rollout"),
        tally.c.wave == bindparam("of_wave"),
        tally.c.blueprint == bindparam("of_blueprint"),
        tally.c.state == bindparam("of_state"),
    )
    .values(n=tally.c.n - bindparam("by"))
)


@cache
def _up(dialect: str) -> postgresql.Insert | sqlite.Insert:
    insert: postgresql.Insert | sqlite.Insert
    insert = postgresql.insert(tally) if dialect == "postgresql" else sqlite.insert(tally)
    return insert.on_conflict_do_update(
        index_elements=[tally.c.rollout, tally.c.wave, tally.c.blueprint, tally.c.state],
        set_={"n": tally.c.n + insert.excluded.n},
    )


def count_down(tx: Transaction, counts: Mapping[Key, int]) -> None:
    """Take rows that left a state out of its count; always in one order, against deadlocks."""
    names = ("of_rollout", "of_wave", "of_blueprint", "of_state", "by")
    for key, n in sorted(counts.items()):
        tx.execute(_DOWN, dict(zip(names, (*key, n), strict=True)))


def count_up(tx: Transaction, counts: Mapping[Key, int]) -> None:
    """Add rows that entered a state to its count."""
    names = ("rollout", "wave", "blueprint", "state", "n")
    for key, n in sorted(counts.items()):
        tx.execute(_up(tx.dialect.name), dict(zip(names, (*key, n), strict=True)))


def read(tx: Transaction, name: str) -> list[tuple[int, str, ExecutionState, int]]:
    """Return (wave, blueprint, state, n), in that order."""
    query = (
        select(tally.c.wave, tally.c.blueprint, tally.c.state, tally.c.n)
        .where(tally.c.rollout == name, tally.c.n > 0)
        .order_by(tally.c.wave, tally.c.blueprint, tally.c.state)
    )
    return [(row[0], row[1], ExecutionState(row[2]), row[3]) for row in tx.execute(query)]


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
