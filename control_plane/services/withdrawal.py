"""Taking devices out of what is under way, whatever rollout it belongs to."""

from collections.abc import Sequence

from agent.protocol.words import Action, ExecutionState
from control_plane.domain.device import DeviceId
from control_plane.domain.rollout import IN_FLIGHT
from control_plane.services import desired
from control_plane.services.desired import Wanted
from control_plane.services.scope import Scope
from control_plane.store import executions, withdrawals
from control_plane.store.executions import ExecutionRow, Moved
from control_plane.store.invalidations import Return


def cancel_open(scope: Scope, device: DeviceId, reason: str) -> int:
    """End a device's open parts as CANCELED, and hold it if one was under way; return how many.

    The caller has locked the device. A tick that offers at the same time holds the lock of its
    rollout: either it comes first, and its offer is taken back here, or it finds nothing queued.
    """
    names = withdrawals.lock_rollouts_of_device(scope.tx, device)
    which = withdrawals.parts_of_device(device, names)
    after = ExecutionState.CANCELED
    flying = executions.move(scope.tx, scope.now, which, IN_FLIGHT, after, reason=reason)
    waiting = [ExecutionState.QUEUED]
    queued = executions.move(scope.tx, scope.now, which, waiting, after, reason=reason)
    hold(scope, flying)
    return len(flying) + len(queued)


def hold(scope: Scope, moved: Sequence[Moved]) -> None:
    """Order the devices of these parts to stay with what they run."""
    if not moved:
        return
    wanted = [
        Wanted(device=one.device, action=Action.HOLD, rollout=one.rollout, execution=one.id)
        for one in moved
    ]
    with desired.ordering(scope, wanted) as generations:
        # What a device says under an older order is from before it was taken back.
        executions.set_generations(scope.tx, {one.id: generations[one.device] for one in moved})


def order_back(scope: Scope, parts: Sequence[ExecutionRow | Return]) -> None:
    """Order the devices of these parts back to what they ran before."""
    if not parts:
        return
    wanted = [
        Wanted(
            device=one.device,
            action=Action.REVERT,
            digest=one.previous,
            rollout=one.rollout,
            execution=one.id,
        )
        for one in parts
    ]
    with desired.ordering(scope, wanted) as generations:
        ordered = {one.id: generations[one.device] for one in parts}
        executions.set_generations(scope.tx, ordered, "revert_generation")
