"""What takes many devices back, in slices: each a short transaction, the rest noted in the rollout.

A halt, a pause, an abort or a revert decides at once: from its commit on nothing is offered. The
devices that it takes back, up to a million, follow a slice a step; a kill loses one slice, and the
next tick takes it again. Until all are done the rollout decides nothing else.

A revert takes those in flight first, so that nobody ends meanwhile, then those that ended, in the
order of the plan behind a place that is noted, then those that wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import msgspec

from agent.protocol.words import ExecutionState
from control_plane.domain.rollout import IN_FLIGHT, RolloutState
from control_plane.domain.rollout_view import Decision, SendBack, Withdraw
from control_plane.services import rollout_orders
from control_plane.services.scope import Scope
from control_plane.store import executions, sweeps

SLICE = 500
"""Devices that get an order in one transaction, about a tenth of a second: the relays publish what
one has stored while the next ones are signed."""
QUEUED_SLICE = 20_000
"""Executions that end in one transaction without an order."""

_RAN = (ExecutionState.SUCCEEDED, ExecutionState.TIMED_OUT)
"""Ended, and may run the bundle."""


class Kind(StrEnum):
    """What is done with the devices."""

    WITHDRAW = "withdraw"
    RETURN_FLYING = "return_flying"
    RETURN_RAN = "return_ran"
    CANCEL = "cancel"


@dataclass(frozen=True)
class Work:
    """Something to do for all devices of a rollout, or of one blueprint in it.

    `state`, `wave` and `position` say how far a return of those that ended has come.
    """

    kind: Kind
    blueprint: str = ""
    state: ExecutionState = _RAN[0]
    wave: int = -1
    position: int = -1


def read(text: str) -> list[Work]:
    """Read what `text` wrote."""
    return msgspec.json.decode(text, type=list[Work]) if text else []


def text(work: Sequence[Work]) -> str:
    """Return work as a rollout keeps it; empty for none."""
    return msgspec.json.encode(work).decode() if work else ""


def left(before: Sequence[Work], state: RolloutState, decisions: Sequence[Decision]) -> list[Work]:
    """Return what is to do after a decision: the new, and of the old what still holds."""
    new = [one for decision in decisions for one in _work(decision)]
    if any(one.kind is not Kind.WITHDRAW and not one.blueprint for one in new):
        return new  # for all devices, and for good
    match state:
        case RolloutState.ABORTED:  # given up while devices were being sent back: the rest stays
            return [one for one in before if one.kind is Kind.CANCEL] + new
        case RolloutState.RUNNING:  # a person goes on: nothing more is withdrawn
            return [one for one in before if one.kind is not Kind.WITHDRAW] + new
        case _:
            return [*before, *new]


def carry_on(scope: Scope, name: str, work: Sequence[Work]) -> list[Work]:
    """Do one slice of the work of a locked rollout; return what is left of it."""
    rest, room = list(work), SLICE
    while rest and room > 0:
        n, more = _slice(scope, name, rest[0], room)
        room -= n
        if more is None:
            rest.pop(0)
        else:
            rest[0] = more
    return rest


def _work(decision: Decision) -> list[Work]:
    match decision:
        case Withdraw(for_good=True):
            return [Work(Kind.CANCEL)]
        case Withdraw(blueprint=blueprint):
            return [Work(Kind.WITHDRAW, blueprint)]
        case SendBack(blueprint=blueprint):
            kinds = (Kind.RETURN_FLYING, Kind.RETURN_RAN, Kind.CANCEL)
            return [Work(kind, blueprint) for kind in kinds]
        case _:
            return []


def _slice(scope: Scope, name: str, one: Work, room: int) -> tuple[int, Work | None]:
    """Do up to `room` devices; return how many, and what is left of this work."""
    which = executions.of_blueprint(name, one.blueprint)
    match one.kind:
        case Kind.WITHDRAW:
            n = rollout_orders.requeue(scope, name, one.blueprint, room)
            return n, one if n == room else None
        case Kind.RETURN_RAN:
            return _ran(scope, name, one, room)
        case Kind.RETURN_FLYING | Kind.CANCEL:
            found = sweeps.first(scope.tx, which, IN_FLIGHT, room)
            if one.kind is Kind.RETURN_FLYING:
                rollout_orders.send_back(scope, found.ids)
            rollout_orders.cancel(scope, found.ids, found.states)
            if len(found.ids) == room:
                return room, one
            queued = one.kind is Kind.CANCEL and sweeps.cancel_queued(
                scope.tx, scope.now, name, one.blueprint, most=QUEUED_SLICE
            )
            return (room, one) if queued else (len(found.ids), None)


def _ran(scope: Scope, name: str, one: Work, room: int) -> tuple[int, Work | None]:
    which, after = executions.of_blueprint(name, one.blueprint), (one.wave, one.position)
    found = sweeps.ran(scope.tx, which, one.state, after, room)
    rollout_orders.send_back(scope, found.ids)
    if len(found.ids) == room:
        return room, replace(one, wave=found.wave, position=found.position)
    later = _RAN[_RAN.index(one.state) + 1 :]
    return len(found.ids), Work(one.kind, one.blueprint, later[0]) if later else None
