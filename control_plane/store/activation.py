"""Activation windows that devices were given, and those that passed before they began."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, or_, select, update

from agent.protocol.words import ExecutionState
from control_plane.store import standing
from control_plane.store.bulk import chunks
from control_plane.store.database import Transaction
from control_plane.store.executions import ExecutionRow, columns, read_row
from control_plane.store.schema import execution

E = ExecutionState
MAY_WAIT = (E.OFFERED, E.DOWNLOADING, E.STAGED, E.BENCHMARKING)
"""Where a device may still be when its window passes: it activates only inside."""
LIMIT = 1_000
"""Orders renewed in one step."""


def _lapsed(name: str, closed_before: datetime) -> ColumnElement[bool]:
    return and_(
        execution.c.rollout == name,
        standing.among(MAY_WAIT),
        execution.c.closes_at <= closed_before,
    )


def count_lapsed(tx: Transaction, name: str, waves: int, closed_before: datetime) -> int:
    """Return how many have let their window pass without activating."""
    mine = and_(_lapsed(name, closed_before), execution.c.wave.in_(range(waves)))
    return int(tx.execute(select(func.count()).where(mine)).scalar_one())


def lapsed(tx: Transaction, name: str, waves: int, closed_before: datetime) -> list[ExecutionRow]:
    """Return the first of those that `count_lapsed` counts."""
    mine = and_(_lapsed(name, closed_before), execution.c.wave.in_(range(waves)))
    query = select(*columns()).where(mine).order_by(execution.c.device_id).limit(LIMIT)
    return [read_row(row) for row in tx.execute(query)]


def set_windows(
    tx: Transaction, ids: Collection[str], opens_at: datetime, closes_at: datetime
) -> None:
    """Note the window that these executions' newest orders name."""
    for some in chunks(sorted(ids)):
        statement = update(execution).where(execution.c.id.in_(some))
        tx.execute(statement.values(opens_at=opens_at, closes_at=closes_at))


def not_begun(now: datetime) -> ColumnElement[bool]:
    """Return the condition for executions that a withdrawal takes back.

    Of those in `MAY_WAIT`: what was offered and not taken up, and what waits for a window: it
    must not begin tonight what was stopped at noon.
    """
    waits = or_(execution.c.opens_at > now, execution.c.closes_at <= now)
    return or_(execution.c.state == E.OFFERED.value, waits)
