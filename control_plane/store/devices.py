"""Device rows: who is enrolled, its labels, its history, and what it reported last."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, delete, insert, or_, select, text, update

from control_plane.domain.device import SITE_LABEL, DeviceId
from control_plane.store import rollups
from control_plane.store.bulk import (
    among,
    among_bound,
    as_records,
    chunks,
    insert_one,
    records,
)
from control_plane.store.database import Transaction
from control_plane.store.rollups import Counted
from control_plane.store.schema import device, device_history, device_label


class Reported(NamedTuple):
    """What a device's own messages change in its row, apart from its hardware."""

    online: bool
    connection: int
    last_seen_at: datetime | None
    boot: int
    state_seq: int
    generation: int
    digest: str
    last_known_good: str
    healthy: bool
    agent_version: str
    blueprint: str | None


class KnownDevice(NamedTuple):
    """A device's row as the inbox needs it."""

    id: DeviceId
    state: str
    reported: Reported


@dataclass(frozen=True)
class Registration:
    """A device at its enrolment."""

    id: DeviceId
    state: str
    blueprint: str | None
    hardware: Mapping[str, Any]
    secret_sha256: str
    certificate_serial: str


@dataclass(frozen=True)
class Happening:
    """A line of a device's history."""

    device: DeviceId
    kind: str
    why: str
    digest: str = ""
    version: str = ""
    execution: str = ""


_COUNTED = (
    device.c.state, device.c.blueprint, device.c.online, device.c.healthy, device.c.digest,
)  # fmt: skip


def register(tx: Transaction, new: Registration, now: datetime) -> bool:
    """Store a new device; False when its id is taken."""
    row = {
        "id": new.id,
        "state": new.state,
        "blueprint": new.blueprint,
        "hardware": dict(new.hardware),
        "agent_version": "",
        "secret_sha256": new.secret_sha256,
        "certificate_serial": new.certificate_serial,
        "enrolled_at": now,
        "facts_at": now,
        "online": False,
        "connection": 0,
        "boot": 0,
        "state_seq": 0,
        "generation": 0,
        "digest": "",
        "last_known_good": "",
        "healthy": True,
    }
    if not insert_one(tx, device, row):
        return False
    counted = Counted(new.state, new.blueprint, online=False, healthy=True, digest="")
    rollups.add(tx, rollups.changes([(None, counted)]))
    return True


def exists(tx: Transaction, device_id: str) -> bool:
    """Return whether a device of this id is enrolled."""
    return tx.execute(select(device.c.id).where(device.c.id == device_id)).first() is not None


def by_secret(tx: Transaction, secret_sha256: str) -> tuple[DeviceId, str] | None:
    """Return (id, state) of the device with this hashed secret."""
    found = tx.execute(
        select(device.c.id, device.c.state).where(device.c.secret_sha256 == secret_sha256)
    ).first()
    return None if found is None else (DeviceId(found[0]), found[1])


def set_state(tx: Transaction, device_id: DeviceId, state: str) -> bool:
    """Change a device's state; False when it has it already."""
    one = (device.c.id == device_id, device.c.state != state)
    found = tx.execute(select(*_COUNTED).where(*one).with_for_update(key_share=True)).one_or_none()
    if found is None:
        return False
    before = Counted(*found)
    tx.execute(update(device).where(*one).values(state=state))
    rollups.add(tx, rollups.changes([(before, replace(before, state=state))]))
    return True


# --- labels -----------------------------------------------------------------------------------


def labels(tx: Transaction, ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the labels of devices by id; a device without any has no entry."""
    found: dict[str, dict[str, str]] = {}
    columns = (device_label.c.device_id, device_label.c.key, device_label.c.value)
    for some in chunks(ids):
        query = select(*columns).where(among(tx, device_label.c.device_id, some))
        for device_id, key, value in tx.execute(query.order_by(device_label.c.key)):
            found.setdefault(device_id, {})[key] = value
    return found


def set_labels(tx: Transaction, device_id: DeviceId, changes: Mapping[str, str | None]) -> None:
    """Set labels; None removes one."""
    if not changes:
        return
    # One change of a device's labels after the other: each takes away just what the last one set.
    tx.execute(select(device.c.id).where(device.c.id == device_id).with_for_update(key_share=True))
    gone = tx.execute(
        delete(device_label)
        .where(device_label.c.device_id == device_id, device_label.c.key.in_(list(changes)))
        .returning(device_label.c.key, device_label.c.value)
    )
    before = {row.key: row.value for row in gone}
    rows = [
        {"device_id": device_id, "key": key, "value": value}
        for key, value in changes.items()
        if value is not None
    ]
    if rows:
        tx.execute(insert(device_label), rows)
    if SITE_LABEL in changes:
        rollups.add(tx, rollups.moved(before.get(SITE_LABEL), changes[SITE_LABEL]))


# --- history ----------------------------------------------------------------------------------


def add_history(tx: Transaction, happenings: Sequence[Happening], now: datetime) -> None:
    """Add lines to devices' histories."""
    rows = [
        {
            "device_id": happening.device,
            "at": now,
            "kind": happening.kind,
            "digest": happening.digest,
            "version": happening.version,
            "execution_id": happening.execution,
            "why": happening.why,
        }
        for happening in happenings
    ]
    if rows:
        tx.execute(insert(device_history), rows)


# --- what devices report ----------------------------------------------------------------------

_REPORTED = (
    device.c.online,
    device.c.connection,
    device.c.last_seen_at,
    device.c.boot,
    device.c.state_seq,
    device.c.generation,
    device.c.digest,
    device.c.last_known_good,
    device.c.healthy,
    device.c.agent_version,
    device.c.blueprint,
)


def lock(tx: Transaction, ids: Collection[str]) -> dict[str, KnownDevice]:
    """Return the devices among `ids`, locked until the transaction ends.

    Locked in the order of their ids, so that two gateways wait for each other and never in a
    ring; without `key`, so that whoever only refers to a device does not wait.
    """
    found: dict[str, KnownDevice] = {}
    for some in chunks(sorted(set(ids))):
        found.update(_read(tx, some, lock=True))
    return found


def read(tx: Transaction, ids: Collection[str]) -> dict[str, KnownDevice]:
    """Return the devices among `ids` as they are now."""
    found: dict[str, KnownDevice] = {}
    for some in chunks(sorted(set(ids))):
        found.update(_read(tx, some))
    return found


@cache
def _known(dialect: str, *, lock: bool) -> Select[Any]:
    # Built once: this runs for every batch of reports.
    query = select(device.c.id, device.c.state, *_REPORTED)
    query = query.where(among_bound(dialect, device.c.id, "ids"))
    return query.order_by(device.c.id).with_for_update(key_share=True) if lock else query


def _read(
    tx: Transaction, ids: Sequence[str], *, lock: bool = False
) -> Iterator[tuple[str, KnownDevice]]:
    query = _known(tx.dialect.name, lock=lock)
    for device_id, state, *reported in tx.execute(query, {"ids": list(ids)}).all():
        yield device_id, KnownDevice(DeviceId(device_id), state, Reported(*reported))


def save_reported(
    tx: Transaction, before: Mapping[str, KnownDevice], after: Mapping[str, Reported]
) -> None:
    """Write what devices reported."""
    signs: dict[tuple[bool, datetime | None], list[str]] = {}
    changed: dict[str, Reported] = {}
    counted: list[tuple[Counted, Counted]] = []
    for device_id, row in sorted(after.items()):
        known = before[device_id].reported
        if row == known:
            continue
        if known._replace(online=row.online, last_seen_at=row.last_seen_at) == row:
            signs.setdefault((row.online, row.last_seen_at), []).append(device_id)
        else:
            changed[device_id] = row
        state = before[device_id].state
        counted.append((_counted(state, known), _counted(state, row)))
    # Most messages are heartbeats that change nothing: one statement for all of those.
    for (online, last_seen_at), ids in signs.items():
        for some in chunks(ids):
            seen = update(device).where(among(tx, device.c.id, some))
            tx.execute(seen.values(online=online, last_seen_at=last_seen_at))
    _save_changed(tx, changed)
    rollups.add(tx, rollups.changes(counted))


def _counted(state: str, row: Reported) -> Counted:
    return Counted(state, row.blueprint, row.online, row.healthy, row.digest)


def _save_changed(tx: Transaction, changed: Mapping[str, Reported]) -> None:
    if not changed:
        return
    if tx.dialect.name == "postgresql":
        rows = [{"part": key, **row._asdict()} for key, row in changed.items()]
        tx.execute(_SAVE_CHANGED, {"rows": as_records(rows)})
        return
    tx.execute(
        _CHANGED,
        [
            {"of": device_id, **{f"new_{key}": value for key, value in row._asdict().items()}}
            for device_id, row in changed.items()
        ],
    )


_CHANGED = (
    update(device)
    .where(device.c.id == bindparam("of"))
    .values({column.name: bindparam(f"new_{column.name}") for column in _REPORTED})
)
_TYPES = {
    "online": "boolean", "connection": "bigint", "last_seen_at": "timestamptz", "boot": "bigint",
    "state_seq": "bigint", "generation": "bigint", "digest": "text", "last_known_good": "text",
    "healthy": "boolean", "agent_version": "text", "blueprint": "text",
}  # fmt: skip
_SAVE_CHANGED = text(
    f"UPDATE device SET {', '.join(f'{name} = rows.{name}' for name in _TYPES)}"  # noqa: S608 - our own words
    f" FROM {records('postgresql', 'rows', part='text', **_TYPES)} WHERE device.id = rows.part"
)


def save_hardware(tx: Transaction, hardware: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the hardware that devices reported."""
    if hardware:
        tx.execute(
            update(device)
            .where(device.c.id == bindparam("of"))
            .values(hardware=bindparam("new_hardware", type_=device.c.hardware.type)),
            [{"of": key, "new_hardware": dict(value)} for key, value in sorted(hardware.items())],
        )


def touch(tx: Transaction, ids: Collection[str], at: datetime) -> None:
    """Note a sign of life of devices; for those that nobody is writing to just now.

    Whoever holds a device has heard it as well, so it is not waited for.
    """
    for some in chunks(sorted(set(ids))):
        stale = or_(device.c.last_seen_at.is_(None), device.c.last_seen_at < at)
        free = (
            select(device.c.id)
            .where(among(tx, device.c.id, some), stale)
            .with_for_update(key_share=True, skip_locked=True)
        )
        tx.execute(update(device).where(device.c.id.in_(free)).values(last_seen_at=at))


def sweep(tx: Transaction, silent_since: datetime, *, limit: int) -> int:
    """Call devices offline that gave no sign of life since `silent_since`, at most `limit`.

    Returns:
        How many.
    """
    silent = or_(device.c.last_seen_at.is_(None), device.c.last_seen_at < silent_since)
    # One that somebody holds is being heard right now; to wait for several could be a ring.
    free = (
        select(device.c.id)
        .where(device.c.online, silent)
        .limit(limit)
        .with_for_update(key_share=True, skip_locked=True)
    )
    gone = tx.execute(
        update(device).where(device.c.id.in_(free)).values(online=False).returning(*_COUNTED)
    )
    after = [Counted(*row) for row in gone]
    rollups.add(tx, rollups.changes((replace(one, online=True), one) for one in after))
    return len(after)
