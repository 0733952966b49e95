"""What is forgotten: rows that only grow, a bounded stretch of them at a time.

A sweep goes round each table by its ids, like the hand of a clock: it looks at the next stretch,
deletes what may go, and notes where it has come to. What must stay for now is looked at again the
next time round, and no statement ever looks at more than its stretch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Delete,
    Table,
    Text,
    Update,
    and_,
    cast,
    delete,
    exists,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from control_plane.domain.rollout import ENDED
from control_plane.store import idempotency as answers
from control_plane.store.database import Transaction
from control_plane.store.schema import (
    bench,
    bench_metric,
    decision,
    device_history,
    execution,
    execution_event,
    idempotency,
    rollout,
    sweep_position,
)


@dataclass(frozen=True)
class Stretch:
    """What became of one stretch of a table."""

    forgotten: int
    round_done: bool
    """Whether nothing old enough follows: the next stretch is the first again."""


def sweep(tx: Transaction, name: str, before: datetime, limit: int) -> Stretch:
    """Forget what may go of the next `limit` rows of a table that are older than `before`.

    Args:
        tx: a transaction for this alone, so that it is short.
        name: a key of RULES.
        before: what is younger stays.
        limit: rows looked at.
    """
    rule = RULES[name]
    position = tx.scalar(select(sweep_position.c.row_id).where(sweep_position.c.name == name))
    following = select(rule.id, rule.at).where(rule.id > (position or 0)).order_by(rule.id)
    found = tx.execute(following.limit(limit)).all()
    old = [row_id for row_id, at in found if at < before]
    done = not old or len(found) < limit
    forgotten = 0
    if old:
        gone = and_(rule.id >= old[0], rule.id <= old[-1], rule.at < before, rule.may_go(before))
        if rule.parts is not None:
            theirs = rule.parts.in_(select(rule.id).where(gone))
            tx.execute(delete(rule.parts.table).where(theirs))
        forgotten = tx.execute(rule.forget().where(gone)).rowcount
    _note(tx, name, 0 if done else old[-1])
    return Stretch(forgotten, done)


def forget_answers(tx: Transaction, now: datetime, limit: int) -> int:
    """Forget answers that are kept for nobody any more; return how many."""
    keys = (idempotency.c.actor, idempotency.c.key)
    old = select(*keys).where(idempotency.c.created_at < now - answers.KEPT).limit(limit)
    old = old.with_for_update(skip_locked=True)
    return tx.execute(delete(idempotency).where(tuple_(*keys).in_(old))).rowcount


def _note(tx: Transaction, name: str, row_id: int) -> None:
    dialect = postgresql if tx.dialect.name == "postgresql" else sqlite
    noted = dialect.insert(sweep_position).values(name=name, row_id=row_id)
    tx.execute(noted.on_conflict_do_update(index_elements=["name"], set_={"row_id": row_id}))


# --- what may go ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rule:
    table: Table
    may_go: Callable[[datetime], ColumnElement[bool]]
    """Beyond being old."""
    without: dict[str, Any] | None = None
    """What is emptied instead of the row being deleted."""
    parts: Column[Any] | None = None
    """Names the row in another table, whose rows go with it."""

    @property
    def id(self) -> Column[Any]:
        return self.table.c.id

    @property
    def at(self) -> Column[Any]:
        return self.table.c.at

    def forget(self) -> Delete | Update:
        if self.without is None:
            return delete(self.table)
        return update(self.table).values(self.without)


def _ended(name: ColumnElement[Any], before: datetime) -> ColumnElement[bool]:
    """Return whether the rollout ended before a time: nothing of it is needed to decide any more.

    One that runs for years keeps everything.
    """
    states = sorted(state.value for state in ENDED)
    return exists().where(
        rollout.c.name == name, rollout.c.state.in_(states), rollout.c.ended_at < before
    )


def _event(before: datetime) -> ColumnElement[bool]:
    return exists().where(
        execution.c.id == execution_event.c.execution_id, _ended(execution.c.rollout, before)
    )


def _trial(before: datetime) -> ColumnElement[bool]:
    return _ended(bench.c.rollout, before)


def _series(before: datetime) -> ColumnElement[bool]:
    return and_(cast(bench.c.blocks, Text) != "{}", _ended(bench.c.rollout, before))


def _history(_before: datetime) -> ColumnElement[bool]:
    """Return whether a line may go: not how a device came, nor what it runs now."""
    newer = device_history.alias("newer")
    superseded = exists().where(
        newer.c.device_id == device_history.c.device_id,
        newer.c.kind == "active",
        newer.c.id > device_history.c.id,
    )
    kind = device_history.c.kind
    return and_(kind != "enrolled", or_(kind != "active", superseded))


def _decision(before: datetime) -> ColumnElement[bool]:
    return _ended(decision.c.rollout, before)


RULES: dict[str, _Rule] = {
    "execution_event": _Rule(execution_event, _event),
    "bench_series": _Rule(bench, _series, without={"blocks": {}}),
    "bench": _Rule(bench, _trial, parts=bench_metric.c.bench_id),
    "device_history": _Rule(device_history, _history),
    "decision": _Rule(decision, _decision),
}
