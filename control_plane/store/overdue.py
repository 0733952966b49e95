"""Whose time is over: silent, too long in a step or in all; but not while a window is awaited."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, func, or_, select

from agent.protocol.words import ExecutionState
from control_plane.domain.rollout import IN_FLIGHT
from control_plane.store import standing
from control_plane.store.schema import device, execution

E = ExecutionState
_AWAITS = (E.STAGED.value, E.BENCHMARKING.value)
"""Where a device stays until its activation window opens."""
_SINCE_THE_WINDOW = (*_AWAITS, E.ACTIVATING.value, E.SOAKING.value)


@dataclass(frozen=True)
class Overdue:
    """In the first waves: no sign since `silent_before`, offered before, or in a step before.

    `now` is for those who await an activation window: its time is not theirs.
    """

    waves: int
    silent_before: datetime
    offered_before: datetime
    steps: Mapping[ExecutionState, datetime] = field(default_factory=dict)
    now: datetime | None = None


@dataclass(frozen=True)
class _Terms:
    """What the condition is made of: values, or where they are bound when it is asked."""

    rollout: Any
    waves: Any
    silent_before: Any
    offered_before: Any
    steps: Mapping[ExecutionState, Any]
    now: Any


def condition(name: str, by: Overdue) -> ColumnElement[bool]:
    """Return the condition for a rollout's executions whose time is over.

    From the opening of an activation window on, steps and the whole are counted from there: what
    came before was waiting. Silence counts again once the window has been open for as long, or
    has passed.
    """
    waves = range(by.waves)
    return _condition(_Terms(name, waves, by.silent_before, by.offered_before, by.steps, by.now))


def count(name: str, by: Overdue) -> tuple[Select[int], dict[str, Any]]:
    """Return the statement that counts those in `condition`, and its values."""
    values = {
        "of": name,
        "waves": list(range(by.waves)),
        "silent_before": by.silent_before,
        "offered_before": by.offered_before,
        "now": by.now,
    } | {step.value: before for step, before in by.steps.items()}
    return _count(frozenset(by.steps), waits=by.now is not None), values


@cache
def _count(steps: frozenset[ExecutionState], *, waits: bool) -> Select[int]:
    # Built once: this runs in every tick of every rollout.
    def time(name: str) -> Any:
        return bindparam(name, type_=execution.c.updated_at.type)

    terms = _Terms(
        rollout=bindparam("of"),
        waves=bindparam("waves", expanding=True),
        silent_before=time("silent_before"),
        offered_before=time("offered_before"),
        steps={step: time(step.value) for step in steps},
        now=time("now") if waits else None,
    )
    return select(func.count()).where(_condition(terms))


def _condition(by: _Terms) -> ColumnElement[bool]:
    in_step = [
        and_(standing.among([step]), _since(execution.c.updated_at, before))
        for step, before in sorted(by.steps.items())
    ]
    return and_(
        execution.c.rollout == by.rollout,
        execution.c.wave.in_(by.waves),
        standing.among(IN_FLIGHT),
        or_(_since(execution.c.offered_at, by.offered_before), _silent(by), *in_step),
    )


def _since(column: ColumnElement[datetime], before: Any) -> ColumnElement[bool]:
    """Return the condition that it began before then, waiting for a window not counted."""
    waited = execution.c.state.in_(_SINCE_THE_WINDOW)
    counted = or_(~waited, execution.c.opens_at.is_(None), execution.c.opens_at < before)
    return and_(column < before, counted)


def _silent(by: _Terms) -> ColumnElement[bool]:
    seen = select(device.c.last_seen_at).where(device.c.id == execution.c.device_id)
    silent = func.coalesce(seen.scalar_subquery(), execution.c.updated_at) < by.silent_before
    counted = [
        ~execution.c.state.in_(_AWAITS),
        execution.c.opens_at.is_(None),
        execution.c.opens_at < by.silent_before,
    ]
    if by.now is not None:
        counted.append(execution.c.closes_at <= by.now)
    return and_(execution.c.updated_at < by.silent_before, silent, or_(*counted))
