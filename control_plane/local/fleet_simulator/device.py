"""PURE: one simulated device: a state and an event in, the next state and what it does out.

It follows the rules of agent/machine.py, with times and faults from the profile in the place of
work (tests/unit/fleet_simulator holds the two side by side). Then read orders.py and steps.py.
"""

from msgspec.structs import replace

from control_plane.local.fleet_simulator import orders, steps
from control_plane.local.fleet_simulator.states import (
    Acked,
    Came,
    Device,
    Fetched,
    Happening,
    Moment,
    Ordered,
    Stage,
    Step,
    Told,
    Traits,
    Went,
    Woke,
)
from control_plane.local.fleet_simulator.turn import Turn

FOREVER = float("inf")


def take(traits: Traits, device: Device, event: Happening, now: Moment) -> Step:
    """Return the device after `event`, and what it does."""
    turn = Turn(traits, device, now)
    match event:
        case Acked():
            _forget(turn, event)
        case Came():
            turn.change(connected=True, asleep=False)
            turn.greet()
            steps.back_on_the_line(turn)
        case Went():
            turn.change(connected=False)
        case _ if device.asleep:
            pass  # nobody is there
        case Woke():
            _wake(turn)
        case Ordered():
            orders.take_up(turn, event)
        case Told():
            _obey(turn, event)
        case Fetched():
            _arrive(turn, event)
    return turn.device, tuple(turn.effects)


def wake_at(device: Device) -> float:
    """Return the steady time at which the device wants a `Woke`; infinity for never."""
    if device.asleep:
        return FOREVER
    work = device.work
    due = FOREVER if work is None or work.due is None else work.due
    if not device.connected:
        return due
    chores = min(device.beat_at, device.resend_at if device.kept else FOREVER)
    return min(due, max(chores, device.quiet_until))


def in_flight(device: Device) -> bool:
    """Return whether an update or a return is under way."""
    return device.work is not None


def resumed(device: Device, boot: int, now: Moment) -> Device:
    """Return a device that was switched off and on: only what it stands on is left."""
    return Device(boot=max(device.boot + 1, boot), born=now.steady, standing=device.standing)


def _wake(turn: Turn) -> None:
    work, now = turn.device.work, turn.now.steady
    if work is not None and work.due is not None and work.due <= now:
        steps.end_step(turn, work)
    device = turn.device
    if device.connected and not device.asleep and device.quiet_until <= now:
        if device.kept and device.resend_at <= now:
            turn.resend()
        if device.beat_at <= now:
            turn.beat()


def _obey(turn: Turn, event: Told) -> None:
    if event.name == "hello":
        turn.greet()
    elif event.name == "back-off":
        turn.be_patient(event.seconds)


def _forget(turn: Turn, event: Acked) -> None:
    named = {seq for boot, seq in event.reports if boot == turn.device.boot}
    turn.change(kept=tuple(one for one in turn.device.kept if one.seq not in named))


def _arrive(turn: Turn, event: Fetched) -> None:
    work = turn.device.work
    wanted = work is not None and work.stage is Stage.DOWNLOADING
    if work is not None and wanted and work.order.generation == event.generation:
        steps.fetched(turn, replace(work, due=None), event.reason)
