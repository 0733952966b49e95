"""Which executions come next where many are taken back: in slices, each found by an index."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, literal, select, tuple_

from agent.protocol.words import ExecutionState
from control_plane.store import standing
from control_plane.store.database import Transaction
from control_plane.store.executions import Step, end_queued, of_blueprint
from control_plane.store.schema import execution


@dataclass(frozen=True)
class Ran:
    """Where a slice of those that have ended stopped, and its executions."""

    wave: int
    position: int
    ids: list[str]


@dataclass(frozen=True)
class Flying:
    """The next of those in flight, and the states that they are in."""

    ids: list[str]
    states: list[ExecutionState]


def first(
    tx: Transaction, which: ColumnElement[bool], states: Collection[ExecutionState], n: int
) -> Flying:
    """Return the first n executions in these states."""
    order = (execution.c.standing, execution.c.wave, execution.c.position)
    mine = select(execution.c.id, execution.c.state).where(which, standing.among(states))
    rows = tx.execute(mine.order_by(*order).limit(n)).all()
    return Flying([row[0] for row in rows], sorted({ExecutionState(row[1]) for row in rows}))


def ran(
    tx: Transaction,
    which: ColumnElement[bool],
    state: ExecutionState,
    after: tuple[int, int],
    n: int,
) -> Ran:
    """Return the next n that ended in a state, behind a place (wave, position) in the plan."""
    place = (execution.c.wave, execution.c.position)
    query = (
        select(*place, execution.c.id)
        .where(
            which,
            standing.among([state]),
            tuple_(*place) > tuple_(*map(literal, after)),
        )
        .order_by(*place)
        .limit(n)
    )
    rows = tx.execute(query).all()
    if not rows:
        return Ran(*after, [])
    return Ran(rows[-1][0], rows[-1][1], [row[2] for row in rows])


def cancel_queued(
    tx: Transaction, now: datetime, name: str, blueprint: str = "", *, most: int
) -> bool:
    """Move up to so many that wait to CANCELED, of one blueprint if it is named.

    Returns:
        Whether there may be more.
    """
    order = (execution.c.wave, execution.c.position)
    mine = and_(of_blueprint(name, blueprint), standing.among([ExecutionState.QUEUED]))
    behind = select(*order).where(mine).order_by(*order).offset(most).limit(1)
    end = tx.execute(behind).one_or_none()
    which = mine if end is None else and_(mine, tuple_(*order) < tuple_(*map(literal, end)))
    step = Step(ExecutionState.QUEUED, ExecutionState.CANCELED)
    end_queued(tx, now, name, which, step)
    return end is not None
