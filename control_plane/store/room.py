"""Which queued devices may be offered a rollout now: disruption budgets, and other rollouts first.

One statement picks or counts them. It is right under the locks of all unfinished rollouts, which
a tick holds: what is in flight anywhere stands still meanwhile.

At most `LOOK_AHEAD` queued devices are looked at, in the order of the plan, so that a tick costs
the same for a wave of ten thousand and of a million. Where none of them may be offered it, the
next look begins further on (`start`): a large site that is full does not hold up the others.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Select,
    and_,
    bindparam,
    exists,
    func,
    or_,
    select,
)

from agent.protocol.words import ExecutionState
from control_plane.domain.rollout import ENDED, STEPS, Budget, RolloutState
from control_plane.store import standing
from control_plane.store.database import Transaction
from control_plane.store.schema import FLYING, device_label, execution, rollout

LOOK_AHEAD = 1_000
"""Queued devices looked at in one statement: on two busy cores some 20 to 50 ms."""
MOST_NAMED = 3

_OPEN = tuple(state.value for state in STEPS)
_BEGUN = rollout.c.state.not_in([state.value for state in ENDED | {RolloutState.DRAFT}])


_OUTRANKED = (
    select(rollout.c.name)
    .where(rollout.c.name != bindparam("of"), rollout.c.priority > bindparam("than"), _BEGUN)
    .order_by(rollout.c.name)
)


@dataclass(frozen=True)
class Wave:
    """The queued devices of one wave, from a position on, without some blueprints."""

    rollout: str
    wave: int
    halted: Collection[str] = ()
    start: int = 0


@dataclass(frozen=True)
class Limits:
    """What a rollout must leave to others."""

    priority: int
    budgets: Sequence[Budget] = ()


def outranked(tx: Transaction, name: str, priority: int) -> list[str]:
    """Return the rollouts of higher priority that have begun and not ended."""
    return list(tx.execute(_OUTRANKED, {"of": name, "than": priority}).scalars())


def count(tx: Transaction, wave: Wave, limits: Limits, most: int) -> int:
    """Return how many may be offered it, counted up to `most`."""
    some = select(allowed(wave, limits).c.id).limit(most).subquery()
    return int(tx.execute(select(func.count()).select_from(some)).scalar_one())


def full(tx: Transaction, budget: Budget) -> list[tuple[str, int]]:
    """Return some values of the label that have no room, with how many are in flight."""
    busy = _busy(budget).subquery()
    query = select(busy.c.value, busy.c.n).where(busy.c.n >= budget.max)
    return [(row[0], row[1]) for row in tx.execute(query.order_by("value").limit(MOST_NAMED))]


def allowed(wave: Wave, limits: Limits) -> FromClause:
    """Return id and position of the queued executions that may be offered it.

    Those without the label are bound by no budget. Each budget takes the first of the plan among
    those that the budgets before it let through, so that none is exceeded.
    """
    near = _near(wave)
    labels = [device_label.alias(f"label_{i}") for i in range(len(limits.budgets))]
    busy = [_once(_busy(budget).cte(f"busy_{i}")) for i, budget in enumerate(limits.budgets)]
    rows: FromClause = near
    for budget, label, used in zip(limits.budgets, labels, busy, strict=True):
        own = and_(label.c.device_id == near.c.device_id, label.c.key == budget.label)
        rows = rows.outerjoin(label, own).outerjoin(used, used.c.value == label.c.value)
    left = [
        (budget.max - func.coalesce(used.c.n, 0)).label(f"left_{i}")
        for i, (budget, used) in enumerate(zip(limits.budgets, busy, strict=True))
    ]
    values = [label.c.value.label(f"value_{i}") for i, label in enumerate(labels)]
    # Whoever has no room at all must not take another's turn.
    room = [or_(v.is_(None), n > 0) for v, n in zip(values, left, strict=True)]
    query = select(near.c.id, near.c.position, *values, *left).select_from(rows)
    found = _once(query.where(~_taken(near, limits), *room).cte("free"))
    for number in range(len(limits.budgets)):
        found = _once(_within(found, number).cte(f"within_{number}"))
    return found


def _once(table: CTE) -> CTE:
    """Have PostgreSQL work it out once: it takes the few rows for one, and looks them up again."""
    return table.prefix_with("MATERIALIZED", dialect="postgresql")


def _near(wave: Wave) -> CTE:
    return _once(
        select(execution.c.id, execution.c.position, execution.c.device_id)
        .where(
            execution.c.rollout == wave.rollout,
            execution.c.wave == wave.wave,
            standing.among([ExecutionState.QUEUED]),
            execution.c.position >= wave.start,
            execution.c.blueprint.not_in(sorted(wave.halted)),
        )
        .order_by(execution.c.position)
        .limit(LOOK_AHEAD)
        .cte("near")
    )


def _taken(near: FromClause, limits: Limits) -> ColumnElement[bool]:
    """Return the condition that a rollout of higher priority has the device."""
    other = execution.alias("other")
    return exists().where(
        other.c.device_id == near.c.device_id,
        other.c.state.in_(_OPEN),
        other.c.rollout == rollout.c.name,
        rollout.c.priority > limits.priority,
        _BEGUN,
    )


def _busy(budget: Budget) -> Select[Any]:
    """Return how many devices are in flight for each value of the label, in whatever rollout."""
    flying = select(execution.c.device_id).where(FLYING).distinct().subquery()
    return (
        select(device_label.c.value, func.count().label("n"))
        .join(flying, flying.c.device_id == device_label.c.device_id)
        .where(device_label.c.key == budget.label)
        .group_by(device_label.c.value)
    )


def _within(found: FromClause, number: int) -> Select[Any]:
    value = found.c[f"value_{number}"]
    turn = func.row_number().over(partition_by=value, order_by=found.c.position)
    ranked = select(*found.c, turn.label("turn")).subquery()
    free = or_(ranked.c[f"value_{number}"].is_(None), ranked.c.turn <= ranked.c[f"left_{number}"])
    kept = [column for column in ranked.c if column.name != "turn"]
    return select(*kept).where(free)
