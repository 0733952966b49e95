"""Offers: who is next in the plan, and the rollouts that another one takes devices from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from sqlalchemy import TextClause, and_, bindparam, or_, select, text

from agent.protocol.words import ExecutionState
from control_plane.domain.device import ACTIVE, DeviceId
from control_plane.domain.rollout import IN_FLIGHT, STEPS
from control_plane.store import executions, room, standing
from control_plane.store.bulk import among, as_records, chunks, records
from control_plane.store.database import Transaction
from control_plane.store.room import Limits, Wave
from control_plane.store.schema import device, execution, rollout

Times = tuple[datetime, datetime]
"""From when until when a device may begin the trial."""


@dataclass(frozen=True)
class Candidate:
    """A queued execution whose turn has come, with what its device runs."""

    id: str
    device: DeviceId
    wave: int
    blueprint: str
    digest: str
    previous: str
    active: bool


def next_queued(
    tx: Transaction, wave: Wave, n: int, limits: Limits | None = None
) -> list[Candidate]:
    """Return the next n of a wave in the order of the plan; with limits, those they allow."""
    if limits is None:
        theirs = and_(
            execution.c.rollout == wave.rollout,
            execution.c.wave == wave.wave,
            standing.among([ExecutionState.QUEUED]),
            execution.c.blueprint.not_in(sorted(wave.halted)),
        )
    else:
        first = room.allowed(wave, limits)
        ids = select(first.c.id).order_by(first.c.position).limit(n)
        theirs = execution.c.id.in_(ids)
    query = (
        select(
            execution.c.id,
            execution.c.device_id,
            execution.c.wave,
            execution.c.blueprint,
            execution.c.digest,
            device.c.last_known_good,
            device.c.digest,
            device.c.state,
        )
        .join(device, device.c.id == execution.c.device_id)
        .where(theirs)
        .order_by(execution.c.position)
        .limit(n)
    )
    return [
        Candidate(
            row[0], DeviceId(row[1]), row[2], row[3], row[4], row[5] or row[6], row[7] == ACTIVE
        )
        for row in tx.execute(query)
    ]


def offer(
    tx: Transaction,
    now: datetime,
    name: str,
    chosen: Sequence[Candidate],
    generations: Mapping[str, int],
    *,
    window: Times | None = None,
) -> None:
    """Move queued executions to OFFERED, each with its order's generation and window."""
    opens_at, closes_at = window or (None, None)
    for some in chunks(chosen):
        rows = [
            {"part": one.id, "generation": generations[one.device], "previous": one.previous}
            for one in some
        ]
        times = {"at": now, "opens_at": opens_at, "closes_at": closes_at}
        tx.execute(_offer(tx.dialect.name), {"rows": as_records(rows), **times})
    moved = [executions.Moved(c.id, name, c.device, c.wave, c.blueprint) for c in chosen]
    step = executions.Step(ExecutionState.QUEUED, ExecutionState.OFFERED)
    executions.count(tx, moved, step.before, step.after)
    executions.note(tx, now, moved, step)


@cache
def _offer(dialect: str) -> TextClause:
    queued, offered = ExecutionState.QUEUED.value, ExecutionState.OFFERED.value
    chosen = records(dialect, "rows", part="text", generation="bigint", previous="text")
    time = execution.c.offered_at.type
    return text(
        f"UPDATE execution SET state = '{offered}', reason = '', generation = rows.generation,"  # noqa: S608 - our own words
        " previous = rows.previous, offered_at = :at, opens_at = :opens_at,"
        f" closes_at = :closes_at, updated_at = :at FROM {chosen}"
        f" WHERE execution.id = rows.part AND execution.state = '{queued}'"
    ).bindparams(*(bindparam(name, type_=time) for name in ("at", "opens_at", "closes_at")))


def supersede(
    tx: Transaction, now: datetime, newer: str, devices: Sequence[DeviceId]
) -> list[executions.Moved]:
    """End what others have open for devices that a rollout offers: the older, and the lower.

    Of older ones of no higher priority all that is open: this one is newer. Of a newer one of
    lower priority only what is in flight: what waits there has its turn after this one. The
    caller holds the locks of all unfinished rollouts.
    """
    mine = select(rollout.c.created_at, rollout.c.priority).where(rollout.c.name == newer)
    made, priority = tx.execute(mine).one()
    before = or_(
        rollout.c.created_at < made, and_(rollout.c.created_at == made, rollout.c.name < newer)
    )
    older = select(rollout.c.name).where(before, rollout.c.priority <= priority)
    lower = select(rollout.c.name).where(~before, rollout.c.priority < priority)
    weaker = or_(rollout.c.name.in_(older), rollout.c.name.in_(lower))
    moved: list[executions.Moved] = []
    for some in chunks(devices):
        theirs = and_(
            among(tx, execution.c.device_id, some),
            or_(
                and_(execution.c.rollout.in_(older), standing.among(STEPS)),
                and_(execution.c.rollout.in_(lower), standing.among(IN_FLIGHT)),
            ),
        )
        if tx.execute(select(execution.c.id).where(theirs).limit(1)).first() is not None:
            # All of them, not only those that are touched now: the next offer of this transaction
            # may need a newer one of them, and locks are taken from the newest on.
            executions.lock_rollouts(tx, and_(weaker, executions.unfinished()))
            after = ExecutionState.SUPERSEDED
            moved += executions.move(tx, now, theirs, STEPS, after, reason="superseded")
    return moved
