"""PURE: the rules by which a device accepts an order and its manifest; each refusal has a reason.

The signature is checked before (agent/verify.py); these rules stop what is signed but not for
this device, not for now, older, or not what the order said.
"""

from agent.lifecycle import Moment, Standing, Waiting
from agent.protocol.manifest import Manifest
from agent.protocol.messages import ActivationWindow, BundleRef, Order
from agent.protocol.words import Action, ExecutionState, Reason, Verdict

LOOK_EVERY_S = 60.0
"""How often a device that awaits its window looks at the clock: it may have been set since."""
RESERVED = {"manifest.json", "manifest.dsse"}
"""Names in a slot's folder that are the agent's own."""

TRIAL_REASON = {
    Verdict.PASS: Reason.TRIAL_PASSED,
    Verdict.REGRESSION: Reason.TRIAL_REGRESSION,
    Verdict.WRONG_OUTPUT: Reason.TRIAL_WRONG_OUTPUT,
    Verdict.OVER_LIMIT: Reason.TRIAL_OVER_LIMIT,
    Verdict.INCONCLUSIVE: Reason.TRIAL_INCONCLUSIVE,
}

_TERMINAL = {
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


def terminal_state(reason: Reason) -> ExecutionState:
    """Return the state in which an execution ends for `reason`."""
    return _TERMINAL.get(reason.split(".")[0], ExecutionState.FAILED)


def refuse_order(order: Order, standing: Standing, wall: float) -> Reason | None:
    """Return why this device must not follow `order`, or none."""
    if order.device != standing.device:
        return Reason.ORDER_DEVICE
    if order.generation <= standing.generation:
        return Reason.ORDER_OLDER
    if order.expires <= wall:
        return Reason.ORDER_EXPIRED
    if order.action is Action.HOLD:
        return None
    if order.bundle is None:
        return Reason.ORDER_MALFORMED
    if order.action is Action.RUN and order.bundle.release < floor(standing, order.bundle):
        return Reason.BUNDLE_OLDER
    return None


def may_begin(order: Order, wall: float) -> bool:
    """Return whether the trial and the switch may begin now.

    A clock that stands before the order was issued is wrong, and then no window is open: without
    a usable clock a device waits rather than begin early. A revert waits for nothing.
    """
    window = order.activate
    if not isinstance(window, ActivationWindow) or order.action is Action.REVERT:
        return True
    return max(window.not_before, order.issued) <= wall < window.not_after


def await_window(standing: Standing, order: Order, now: Moment) -> Waiting:
    """Stay with what runs until the activation window is open."""
    window, until = order.activate, None
    if isinstance(window, ActivationWindow) and now.wall < window.not_after:
        left = window.not_before - now.wall
        until = now.steady + (min(left, LOOK_EVERY_S) if left > 0 else LOOK_EVERY_S)
    return Waiting(standing=standing, order=order, until=until)


def floor(standing: Standing, bundle: BundleRef) -> int:
    """Return the oldest release of this model that may be installed without a signed revert."""
    return standing.floors.get(bundle.model, 0)


def refuse_manifest(bundle: BundleRef, manifest: Manifest, blueprint: str) -> Reason | None:
    """Return why `manifest` is not what the order named, or not for this hardware, or none."""
    if any(file.path.casefold() in RESERVED for file in manifest.files):
        return Reason.BUNDLE_MALFORMED
    told = (bundle.model, bundle.version, bundle.release, bundle.size)
    size = sum(file.size for file in manifest.files)
    if told != (manifest.model, manifest.version, manifest.release, size):
        return Reason.BUNDLE_MISMATCH
    if blueprint and manifest.blueprint != blueprint:
        return Reason.HARDWARE_MISMATCH
    return None
