"""What devices report, applied in batches: each report exactly once, however often it comes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from agent.protocol.messages import Bench, Event, Heartbeat, Hello, Presence, State
from control_plane.domain.device import ACTIVE, DeviceId
from control_plane.services import desired, executions, reported
from control_plane.services.incoming import Incoming, Message, read_all
from control_plane.services.recognition import Recognition
from control_plane.services.scope import Scope
from control_plane.store import devices, joining
from control_plane.store import reports as store
from control_plane.store.devices import KnownDevice, Reported
from control_plane.store.reports import ReportKey

__all__ = ["Applied", "Incoming", "apply_batch", "forget"]

UNKNOWN = "device.unknown"
QUARANTINED = "device.quarantined"
FORGET_LIMIT = 10_000
"""Deleted in one transaction: some tenths of a second."""


@dataclass(frozen=True)
class Applied:
    """What became of a batch."""

    acks: dict[DeviceId, list[tuple[int, int]]] = field(default_factory=dict)
    """The (boot, seq) of events and trials, new or repeated: they are safe once this commits."""
    refused: dict[str, int] = field(default_factory=dict)
    """Messages dropped, by code."""
    counted: int = 0
    """Events and trials that were new."""


def apply_batch(scope: Scope, incoming: Sequence[Incoming]) -> Applied:
    """Apply messages from devices, in one transaction; never raises for what they contain.

    The rows of the devices that something changes are locked first, so that two gateways apply
    these one after the other; others are only read.
    """
    refused: dict[str, int] = {}
    read = read_all(incoming, refused)
    told = _reports(read)
    contested = {message.device for message in read if isinstance(message.body, _ROW)}
    runs = executions.running(scope, (one for one in told if one[0] not in contested))
    contested |= {device for device, report in told if _moves_history(device, report, runs)}
    known = devices.read(scope.tx, {message.device for message in read} - contested)
    contested |= {message.device for message in read if _beat_changes(scope, message, known)}
    held = devices.lock(scope.tx, contested)
    known |= held
    accepted = _admit(read, known, refused)
    runs |= executions.running(scope, (one for one in told if one[0] in held))
    acks, fresh = _claim(scope, accepted)
    executions.apply(scope, fresh, runs)
    _save(scope, accepted, known, held)
    _send_again(scope, accepted)
    return Applied(acks, refused, len(fresh))


def _reports(read: Sequence[Message]) -> list[tuple[DeviceId, Event | Bench]]:
    return [(one.device, one.body) for one in read if isinstance(one.body, Event | Bench)]


_ROW = (Hello, Presence, State)
"""What may change a device's row, whatever the row says."""


def _moves_history(device: DeviceId, report: Event | Bench, runs: Mapping[DeviceId, str]) -> bool:
    """Return whether a report says that another bundle runs than the device's history does."""
    return isinstance(report, Event) and report.digest not in ("", runs.get(device))


def _beat_changes(scope: Scope, message: Message, known: Mapping[str, KnownDevice]) -> bool:
    """Return whether a message is a heartbeat that says more than that the device is alive."""
    device = known.get(message.device)
    if device is None or not isinstance(message.body, Heartbeat):
        return False
    row = device.reported
    after = reported.after_heartbeat(row, message.body, scope.now)
    return after != reported.seen(row, scope.now)


def forget(scope: Scope, *, limit: int = FORGET_LIMIT) -> int:
    """Forget a number of old reports; return how many.

    One that is repeated even later meets executions that have moved on, and changes nothing.
    """
    before = scope.now - timedelta(seconds=scope.settings.report_memory_s)
    return store.forget(scope.tx, before, limit)


def _admit(
    read: Sequence[Message], known: Mapping[str, KnownDevice], refused: dict[str, int]
) -> list[Message]:
    accepted: list[Message] = []
    for message in read:
        device = known.get(message.device)
        if device is not None and device.state == ACTIVE:
            accepted.append(message)
            continue
        code = UNKNOWN if device is None else QUARANTINED
        refused[code] = refused.get(code, 0) + 1
    return accepted


def _claim(
    scope: Scope, accepted: Sequence[Message]
) -> tuple[dict[DeviceId, list[tuple[int, int]]], list[tuple[DeviceId, Event | Bench]]]:
    """Return what to acknowledge, and the reports that nobody counted before, in their order."""
    reports: dict[ReportKey, Event | Bench] = {}
    acks: dict[DeviceId, list[tuple[int, int]]] = {}
    for message in accepted:
        if isinstance(message.body, Event | Bench):
            key = ReportKey(message.device, message.body.boot, message.body.seq)
            if key not in reports:
                acks.setdefault(message.device, []).append((key.boot, key.seq))
            reports.setdefault(key, message.body)
    new = store.claim(scope.tx, reports.keys(), scope.now)
    return acks, [(DeviceId(key.device), reports[key]) for key in sorted(new)]


def _save(
    scope: Scope,
    accepted: Sequence[Message],
    known: Mapping[str, KnownDevice],
    held: Collection[str],
) -> None:
    """Write what changed; mere signs of life only where the last one written is old enough."""
    recognition = Recognition(scope)
    rows: dict[str, Reported] = {}
    alive: set[str] = set()
    hardware: dict[str, dict[str, Any]] = {}
    for message in accepted:
        if message.device not in held:
            if reported.is_stale(known[message.device].reported, scope.now, _every(scope)):
                alive.add(message.device)
            continue
        before = rows.get(message.device, known[message.device].reported)
        rows[message.device] = _after(scope, before, message, recognition)
        if message.hardware is not None:
            hardware[message.device] = message.hardware
    written = {key: _settled(scope, known[key].reported, row) for key, row in rows.items()}
    devices.save_reported(scope.tx, known, written)
    devices.save_hardware(scope.tx, hardware)
    joining.touched(scope.tx, hardware.keys(), scope.now)
    devices.touch(scope.tx, alive, scope.now)


def _settled(scope: Scope, before: Reported, after: Reported) -> Reported:
    """Return a row as it is written: when it was last seen follows an index, so only now and then.

    What comes back from being offline was seen now.
    """
    if after.online != before.online or reported.is_stale(before, scope.now, _every(scope)):
        return after
    return after._replace(last_seen_at=before.last_seen_at)


def _every(scope: Scope) -> timedelta:
    return timedelta(seconds=scope.settings.last_seen_s)


def _after(scope: Scope, row: Reported, message: Message, recognition: Recognition) -> Reported:
    match message.body:
        case Hello() as hello:
            found = recognition.blueprint_of(hello.blueprint, message.hardware)
            return reported.after_hello(row, hello, found or row.blueprint, scope.now)
        case Presence() as presence:
            return reported.after_presence(row, presence, retained=message.retained, now=scope.now)
        case State() as state:
            return reported.after_state(row, state, scope.now)
        case Heartbeat() as beat:
            return reported.after_heartbeat(row, beat, scope.now)
        case Event() | Bench():
            return reported.seen(row, scope.now)


def _send_again(scope: Scope, accepted: Sequence[Message]) -> None:
    behind = {
        message.device: message.body.generation
        for message in accepted
        if isinstance(message.body, Hello)
    }
    desired.send_again(scope, behind)
    alive = {
        message.device: message.body.generation
        for message in accepted
        if isinstance(message.body, Heartbeat) and message.device not in behind
    }
    desired.remind(scope, alive)
