"""PURE: how a simulated device takes up an order and ends it; as agent/transitions.py does."""

from msgspec.structs import replace

from agent.protocol.messages import BundleRef, Order
from agent.protocol.words import Action, ExecutionState, Reason
from control_plane.local.fleet_simulator.states import (
    Device,
    Ordered,
    Outcome,
    Stage,
    Standing,
    Work,
)
from control_plane.local.fleet_simulator.turn import Turn, digest_of, running

_LATE = frozenset({Stage.ACTIVATING, Stage.SOAKING, Stage.REVERTING})
"""From the switch on: a newer order waits for its end."""
_ENDS = {
    "order": ExecutionState.REJECTED,
    "bundle": ExecutionState.REJECTED,
    "hardware": ExecutionState.REJECTED,
    "runtime": ExecutionState.REJECTED,
    "trial": ExecutionState.ROLLED_BACK,
    "soak": ExecutionState.ROLLED_BACK,
    "crash": ExecutionState.ROLLED_BACK,
    "operator": ExecutionState.ROLLED_BACK,
    "superseded": ExecutionState.SUPERSEDED,
}
SWITCH_S = 0.05
"""A link on disk is turned."""


def take_up(turn: Turn, event: Ordered) -> None:
    """Follow an order whose signature is good, or say why not."""
    order, work = event.order, turn.device.work
    if order.device != turn.traits.name:
        _refuse(turn, event, Reason.ORDER_DEVICE)
    elif order.generation <= newest_generation(turn.device):
        turn.tell_state()
    elif order.action is Action.REVERT and order.expires <= turn.now.wall:
        _refuse(turn, event, Reason.ORDER_EXPIRED)
    elif work is None:
        begin(turn, order)
    elif work.stage in _LATE:
        displace(turn, work.waiting, order)
        turn.change(work=replace(work, waiting=order))
        if work.stage is Stage.SOAKING and order.action is Action.REVERT:
            turn_back(turn, Reason.SUPERSEDED)
        else:
            turn.tell_state()
    else:
        displace(turn, work.order, order)
        begin(turn, order)


def newest_generation(device: Device) -> int:
    """Return the newest generation that the device has accepted, finished or not."""
    work = device.work
    if work is None:
        return device.standing.generation
    newest = work.order if work.waiting is None else work.waiting
    return max(device.standing.generation, newest.generation)


def begin(turn: Turn, order: Order) -> None:
    """Take up an order: judge it, and start or finish it."""
    turn.change(work=None)
    reason = _refusal(turn, order)
    if reason is not None:
        give_up(turn, order, reason)
    elif order.action is Action.HOLD:
        _hold(turn, order)
    elif digest_of(order.bundle) == digest_of(turn.standing.good):
        if order.action is Action.REVERT:
            finish(turn, order, ExecutionState.ROLLED_BACK, Reason.REVERTED)
        else:
            finish(turn, order, ExecutionState.SUCCEEDED, Reason.ALREADY_RUNNING)
    else:
        due = turn.now.steady + turn.latency() + turn.latency()  # ask for the manifest, get it
        turn.change(work=Work(stage=Stage.VERIFYING, order=order, due=due))
        turn.tell_state()


def turn_back(turn: Turn, reason: Reason) -> None:
    """Switch back to last known good."""
    work = turn.device.work
    if work is not None:
        due = turn.now.steady + SWITCH_S
        turn.change(work=replace(work, stage=Stage.REVERTING, due=due, reason=reason))
        turn.tell_state()


def leave(turn: Turn, work: Work) -> None:
    """The device is back on last known good: the order that failed is at its end."""
    waiting = work.waiting
    if waiting is not None and work.reason is Reason.SUPERSEDED:  # noqa: SIM102 - one reason each
        if waiting.execution == work.order.execution:
            begin(turn, waiting)  # the revert is this execution's own end
            return
    finish(turn, work.order, terminal_state(work.reason), work.reason)
    take_waiting(turn, waiting)


def take_waiting(turn: Turn, order: Order | None) -> None:
    """Begin the order that waited for the end of what was activated."""
    if order is not None:
        begin(turn, order)


def confirm(turn: Turn, work: Work, result: ExecutionState, reason: Reason) -> None:
    """The candidate is now last known good; only here does the floor rise."""
    bundle, old = work.order.bundle, turn.standing
    floors = old.floors
    if bundle is not None and work.order.action is Action.RUN:
        floors = {**floors, bundle.model: max(_floor(old, bundle), bundle.release)}
    turn.stand(good=bundle, previous=old.good, floors=floors)
    finish(turn, work.order, result, reason)
    take_waiting(turn, work.waiting)


def give_up(turn: Turn, order: Order, reason: Reason) -> None:
    """End before activation: what runs was never touched."""
    finish(turn, order, terminal_state(reason), reason)


def finish(turn: Turn, order: Order, result: ExecutionState, reason: Reason) -> None:
    """Bring an order to its one end."""
    digest = digest_of(turn.standing.good)
    outcome = Outcome(order.generation, order.execution, result, reason, digest)
    newest = max(turn.standing.generation, order.generation)
    turn.change(work=None)
    turn.stand(generation=newest, outcome=outcome)
    _repeat(turn, outcome)
    turn.tell_state()


def displace(turn: Turn, old: Order | None, new: Order) -> None:
    """Answer for an order that a newer one puts aside."""
    if old is None or not old.execution or old.execution == new.execution:
        return
    if new.action is Action.HOLD:
        end, reason = ExecutionState.CANCELED, Reason.WITHDRAWN
    else:
        end, reason = ExecutionState.SUPERSEDED, Reason.SUPERSEDED
    turn.report(old.generation, old.execution, end, reason)


def terminal_state(reason: Reason) -> ExecutionState:
    """Return the state in which an execution ends for `reason`."""
    return _ENDS.get(reason.split(".")[0], ExecutionState.FAILED)


def _refuse(turn: Turn, event: Ordered, reason: Reason) -> None:
    """Say once that an order is refused; what is under way goes on."""
    if event.envelope == turn.standing.refused:
        turn.tell_state()
        return
    order = event.order
    digest = digest_of(running(turn.device))
    turn.report(order.generation, order.execution, ExecutionState.REJECTED, reason, digest)
    turn.stand(refused=event.envelope)


def _refusal(turn: Turn, order: Order) -> Reason | None:
    standing, bundle = turn.standing, order.bundle
    if order.generation <= standing.generation:
        return Reason.ORDER_OLDER
    if order.expires <= turn.now.wall:
        return Reason.ORDER_EXPIRED
    if order.action is Action.HOLD:
        return None
    if bundle is None:
        return Reason.ORDER_MALFORMED
    if order.action is Action.RUN and bundle.release < _floor(standing, bundle):
        return Reason.BUNDLE_OLDER
    return None


def _floor(standing: Standing, bundle: BundleRef) -> int:
    return standing.floors.get(bundle.model, 0)


def _hold(turn: Turn, order: Order) -> None:
    """Nothing new is wanted: answer for the offer that is withdrawn, whatever became of it."""
    known = turn.standing.outcome
    if order.execution and (known is None or known.execution != order.execution):
        finish(turn, order, ExecutionState.CANCELED, Reason.WITHDRAWN)
        return
    turn.stand(generation=order.generation)
    if order.execution and known is not None:
        _repeat(turn, known)
    turn.tell_state()


def _repeat(turn: Turn, outcome: Outcome) -> None:
    turn.report(
        outcome.generation, outcome.execution, outcome.state, outcome.reason, outcome.digest
    )
