"""Executions as reports move them: a batch is read, moved, counted and noted at once."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import TextClause, bindparam, text

from agent.protocol.words import ExecutionState
from control_plane.domain.device import DeviceId
from control_plane.store import executions, history, tallies
from control_plane.store.bulk import as_records, records
from control_plane.store.database import Transaction
from control_plane.store.schema import execution, rollout

_STATES = {state.value: state for state in ExecutionState}


class Part(NamedTuple):
    """One device's part in a rollout, as a report needs it."""

    id: str
    rollout: str
    device: DeviceId
    wave: int
    blueprint: str
    digest: str
    previous: str
    state: ExecutionState
    reason: str
    generation: int
    revert_generation: int
    reverted: bool


class Step(NamedTuple):
    """A line of an execution's history."""

    part: str
    before: ExecutionState
    after: ExecutionState
    reason: str
    digest: str


class Change(NamedTuple):
    """Where a part stood, and where it stands after all its reports."""

    part: Part
    state: ExecutionState
    reason: str
    reverted: bool
    steps: tuple[Step, ...]


def locked(tx: Transaction, ids: Collection[str]) -> dict[str, Part]:
    """Return executions, their rollouts locked until the transaction ends."""
    if not ids:
        return {}
    wanted = {"rows": as_records([{"part": one} for one in sorted(set(ids))])}
    if tx.dialect.name != "sqlite":  # whose writers queue anyway
        names = [row[0] for row in tx.execute(_rollouts(tx.dialect.name), wanted).all()]
        executions.lock_rollouts(tx, rollout.c.name.in_(sorted(names)))
    found: dict[str, Part] = {}
    for row in tx.execute(_parts(tx.dialect.name), wanted).all():
        values = list(row)
        values[7], values[11] = _STATES[values[7]], bool(values[11])
        found[values[0]] = Part(*values)
    return found


def move(tx: Transaction, now: datetime, changes: Sequence[Change]) -> set[str]:
    """Move executions whose rollouts are locked, with their tallies and history; return which.

    One that somebody has moved since it was read stays as it is.
    """
    if not changes:
        return set()
    rows = [
        {
            "part": one.part.id,
            "was": one.part.state,
            "becomes": one.state,
            "why": one.reason,
            "back": one.reverted,
        }
        for one in changes
    ]
    values = {"rows": as_records(rows), "at": now}
    moved = {row[0] for row in tx.execute(_move(tx.dialect.name), values).all()}
    done = [one for one in changes if one.part.id in moved]
    _count(tx, done)
    history.add(tx, now, [step._asdict() for one in done for step in one.steps])
    return moved


def _count(tx: Transaction, changes: Sequence[Change]) -> None:
    net: Counter[tallies.Key] = Counter()
    for one in changes:
        key = (one.part.rollout, one.part.wave, one.part.blueprint)
        net[*key, one.part.state] -= 1
        net[*key, one.state] += 1
    tallies.count_down(tx, {key: -n for key, n in net.items() if n < 0})
    tallies.count_up(tx, {key: n for key, n in net.items() if n > 0})


# --- what runs on a device, as its reports say ------------------------------------------------


def running(tx: Transaction, devices: Collection[DeviceId]) -> dict[DeviceId, str]:
    """Return the digest that each device's history says it runs; none for one without any."""
    if not devices:
        return {}
    wanted = {"rows": as_records([{"device": one} for one in sorted(set(devices))])}
    found = tx.execute(_running(tx.dialect.name), wanted).all()
    return {DeviceId(row[0]): row[1] for row in found if row[1]}


def note_running(tx: Transaction, now: datetime, lines: Sequence[Mapping[str, Any]]) -> None:
    """Note in devices' histories that they run another bundle: device, digest, version, part, why.

    The caller has locked the devices, or their rollouts where a report comes alone.
    """
    if lines:
        tx.execute(_ran(tx.dialect.name), {"rows": as_records(lines), "at": now})


class Line(NamedTuple):
    """A line of a device's history, and the order under which it came to be; 0 for none."""

    digest: str
    part: str
    why: str
    generation: int


def newest_line(tx: Transaction, device: DeviceId) -> Line | None:
    """Return what a device's history says last of what it runs."""
    row = tx.execute(_NEWEST_LINE, {"device": device}).first()
    return None if row is None else Line(*row)


def noted(tx: Transaction, device: DeviceId, part: str, digest: str) -> bool:
    """Return whether a device's history says that it ran a bundle in a part."""
    asked = {"device": device, "part": part, "digest": digest}
    return tx.execute(_NOTED, asked).first() is not None


# --- the statements ---------------------------------------------------------------------------
# Each reads its batch from one JSON value (`bulk.records`); built once for a database.

_AT = bindparam("at", type_=execution.c.updated_at.type)


@cache
def _rollouts(dialect: str) -> TextClause:
    wanted = records(dialect, "rows", part="text")
    return text(f"SELECT DISTINCT e.rollout FROM {wanted} JOIN execution e ON e.id = rows.part")  # noqa: S608 - our own words


@cache
def _parts(dialect: str) -> TextClause:
    wanted = records(dialect, "rows", part="text")
    return text(
        "SELECT e.id, e.rollout, e.device_id, e.wave, e.blueprint, e.digest, e.previous, e.state,"  # noqa: S608 - our own words
        " e.reason, e.generation, e.revert_generation, e.reverted"
        f" FROM {wanted} JOIN execution e ON e.id = rows.part"
    )


@cache
def _move(dialect: str) -> TextClause:
    moves = records(
        dialect, "rows", part="text", was="text", becomes="text", why="text", back="boolean"
    )
    return text(
        "UPDATE execution SET state = rows.becomes, reason = rows.why, reverted = rows.back,"  # noqa: S608 - our own words
        f" updated_at = :at FROM {moves}"
        " WHERE execution.id = rows.part AND execution.state = rows.was RETURNING id"
    ).bindparams(_AT)


@cache
def _running(dialect: str) -> TextClause:
    wanted = records(dialect, "rows", device="text")
    return text(
        "SELECT rows.device, (SELECT h.digest FROM device_history h"  # noqa: S608 - our own words
        " WHERE h.device_id = rows.device AND h.kind = 'active' ORDER BY h.id DESC LIMIT 1)"
        f" FROM {wanted}"
    )


_NEWEST_LINE = text(
    "SELECT h.digest, h.execution_id, h.why, coalesce(e.generation, 0) FROM device_history h"
    " LEFT JOIN execution e ON e.id = h.execution_id"
    " WHERE h.device_id = :device AND h.kind = 'active' ORDER BY h.id DESC LIMIT 1"
)
_NOTED = text(
    "SELECT 1 FROM device_history WHERE device_id = :device AND kind = 'active'"
    " AND execution_id = :part AND digest = :digest LIMIT 1"
)


@cache
def _ran(dialect: str) -> TextClause:
    lines = records(
        dialect, "rows", device="text", digest="text", version="text", part="text", why="text"
    )
    return text(
        "INSERT INTO device_history (device_id, at, kind, digest, version, execution_id, why)"  # noqa: S608 - our own words
        f" SELECT device, :at, 'active', digest, version, part, why FROM {lines}"
    ).bindparams(_AT)
