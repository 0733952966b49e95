"""Where executions stand, as the indexes know it: all steps of one in flight are one standing.

A device reports half a dozen steps. An index that held the state itself would be written with each
of them, and with it every other index of the row (PostgreSQL spares them only if nothing indexed
changes). The database derives `standing` from `state`; a query names both.
"""

from collections.abc import Collection

from sqlalchemy import ColumnElement, and_

from agent.protocol.words import ExecutionState
from control_plane.domain.rollout import IN_FLIGHT
from control_plane.store.schema import FLYING_STANDING, execution


def of(state: ExecutionState) -> str:
    """Return the standing of a state."""
    return FLYING_STANDING if state in IN_FLIGHT else state.value


ALL = tuple(sorted({of(state) for state in ExecutionState}))


def among(states: Collection[ExecutionState]) -> ColumnElement[bool]:
    """Return the condition that an execution is in one of these states."""
    standings = sorted({of(state) for state in states})
    column = execution.c.standing
    found = column == standings[0] if len(standings) == 1 else column.in_(standings)
    if set(states) >= IN_FLIGHT or IN_FLIGHT.isdisjoint(states):
        return found
    return and_(found, execution.c.state.in_(sorted(state.value for state in states)))
