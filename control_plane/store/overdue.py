"""Whose time is over: silent, too long in a step or in all; but not while a window is awaited."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, or_, select

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


def condition(name: str, by: Overdue) -> ColumnElement[bool]:
    """Return the condition for a rollout's executions whose time is over.

    From the opening of an activation window on, steps and the whole are counted from there: what
    came before was waiting. Silence counts again once the window has been open for as long, or
    has passed.
    """
    in_step = [
        and_(standing.among([step]), _since(execution.c.updated_at, before))
        for step, before in sorted(by.steps.items())
    ]
    return and_(
        execution.c.rollout == name,
        execution.c.wave.in_(range(by.waves)),
        standing.among(IN_FLIGHT),
        or_(_since(execution.c.offered_at, by.offered_before), _silent(by), *in_step),
    )


def _since(column: ColumnElement[datetime], before: datetime) -> ColumnElement[bool]:
    """Return the condition that it began before then, waiting for a window not counted."""
    waited = execution.c.state.in_(_SINCE_THE_WINDOW)
    counted = or_(~waited, execution.c.opens_at.is_(None), execution.c.opens_at < before)
    return and_(column < before, counted)


def _silent(by: Overdue) -> ColumnElement[bool]:
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
