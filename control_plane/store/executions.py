"""Executions and their tallies: every move of a row moves the counts, in the same statement pair.

Whoever moves a row holds the lock of its rollout (`lock_rollout`), so a count is never
read between the two, and events, ticks and people take turns. Whoever needs several rollouts locks
them from the newest to the oldest (`lock_rollouts`): a newer one takes devices from older ones.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    TextClause,
    and_,
    bindparam,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)

from agent.protocol.words import ExecutionState
from control_plane.domain.device import DeviceId
from control_plane.domain.rollout import ENDED, IN_FLIGHT, STEPS
from control_plane.store import history, overdue, standing, tallies
from control_plane.store.bulk import as_records, chunks, records
from control_plane.store.database import Transaction
from control_plane.store.overdue import Overdue
from control_plane.store.schema import (
    desired,
    device,
    device_history,
    execution,
    execution_event,
    rollout,
    tally,
)


@dataclass(frozen=True)
class ExecutionRow:
    """One device's part in one rollout."""

    id: str
    rollout: str
    device: DeviceId
    wave: int
    position: int
    blueprint: str
    digest: str
    previous: str
    state: ExecutionState
    reason: str
    generation: int
    revert_generation: int
    reverted: bool
    offered_at: datetime | None
    updated_at: datetime


@dataclass(frozen=True)
class Moved:
    """An execution that has just moved."""

    id: str
    rollout: str
    device: DeviceId
    wave: int
    blueprint: str


_COLUMNS = tuple(execution.c[name if name != "device" else "device_id"] for name in (
    "id", "rollout", "device", "wave", "position", "blueprint", "digest", "previous", "state",
    "reason", "generation", "revert_generation", "reverted", "offered_at", "updated_at",
))  # fmt: skip
_MOVED = (
    execution.c.id,
    execution.c.rollout,
    execution.c.device_id,
    execution.c.wave,
    execution.c.blueprint,
)
_OPEN = tuple(state.value for state in STEPS)


def read_row(row: Row[Any]) -> ExecutionRow:
    """Translate a row of `_COLUMNS`."""
    values = list(row)
    values[2], values[8] = DeviceId(values[2]), ExecutionState(values[8])
    return ExecutionRow(*values)


def columns() -> tuple[ColumnElement[Any], ...]:
    """Return the columns that `read_row` reads."""
    return _COLUMNS


# --- locks ------------------------------------------------------------------------------------


# Built once: these run for every report of every device.
_LOCK = (
    select(rollout.c.name).where(rollout.c.name == bindparam("of")).with_for_update(key_share=True)
)


def lock_rollout(tx: Transaction, name: str) -> bool:
    """Wait for the rollout's lock; False if there is none. SQLite's writers queue anyway."""
    return tx.execute(_LOCK, {"of": name}).scalar() is not None


def lock_rollouts(tx: Transaction, which: ColumnElement[bool]) -> None:
    """Wait for the locks of several rollouts, always in the same order."""
    tx.execute(_locking(which)).all()


def lock_for_tick(tx: Transaction, names: Collection[str]) -> None:
    """Wait for the locks of all rollouts that have not ended, and of these in any case."""
    tx.execute(_lock_for_tick(), {"names": sorted(names)}).all()


@cache
def _lock_for_tick() -> Select[tuple[str]]:
    return _locking(or_(unfinished(), rollout.c.name.in_(bindparam("names", expanding=True))))


def _locking(which: ColumnElement[bool]) -> Select[tuple[str]]:
    newest_first = (rollout.c.created_at.desc(), rollout.c.name.desc())
    query = select(rollout.c.name).where(which).order_by(*newest_first)
    return query.with_for_update(key_share=True)


def unfinished() -> ColumnElement[bool]:
    """Return the condition for rollouts that have not ended."""
    return rollout.c.state.not_in([state.value for state in ENDED])


# --- the plan ---------------------------------------------------------------------------------


def add(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store a plan: executions, all QUEUED, and their tallies."""
    if not rows:
        return
    tx.execute(insert(execution), list(rows))
    counts = Counter((row["rollout"], row["wave"], row["blueprint"]) for row in rows)
    tallies.count_up(tx, {(*key, ExecutionState.QUEUED.value): n for key, n in counts.items()})


def clear(
    tx: Transaction, name: str, blueprint: str | None = None, *, named: int = 0
) -> tuple[int, list[str]]:
    """Take executions that were never offered out of the plan.

    Returns:
        How many, and the first `named` of their devices, in the order of their ids.
    """
    mine = [execution.c.rollout == name]
    theirs = [tally.c.rollout == name]
    if blueprint is not None:
        mine.append(execution.c.blueprint == blueprint)
        theirs.append(tally.c.blueprint == blueprint)
    first = select(execution.c.device_id).where(*mine).order_by(execution.c.device_id)
    devices = list(tx.execute(first.limit(named)).scalars()) if named else []
    # psycopg's count of a DELETE is lost with its cursor unless it is asked for.
    statement = execution.delete().where(*mine).execution_options(preserve_rowcount=True)
    n = tx.execute(statement).rowcount
    tx.execute(tally.delete().where(*theirs))
    return n, devices


def set_digest(tx: Transaction, name: str, blueprint: str, digest: str) -> None:
    """Name the bundle of a blueprint's devices, once it is built.

    All of them are written: ask only where the plan does not name this bundle already.
    """
    statement = update(execution).where(
        execution.c.rollout == name,
        execution.c.blueprint == blueprint,
        standing.among([ExecutionState.QUEUED]),
    )
    tx.execute(statement.values(digest=digest))


# --- reading ----------------------------------------------------------------------------------


def count_overdue(tx: Transaction, name: str, by: Overdue) -> int:
    """Return how many in flight have given no sign since, or were offered before."""
    return int(tx.execute(*overdue.count(name, by)).scalar_one())


def count_to_return(tx: Transaction, name: str) -> int:
    """Return how many were ordered back and do not say that they are."""
    condition = and_(
        execution.c.rollout == name,
        execution.c.revert_generation > 0,
        execution.c.reverted.is_(False),
    )
    return int(tx.execute(select(func.count()).where(condition)).scalar_one())


# --- moving -----------------------------------------------------------------------------------


def move(
    tx: Transaction,
    now: datetime,
    which: ColumnElement[bool],
    before: Collection[ExecutionState],
    after: ExecutionState,
    *,
    reason: str = "",
    digest: str = "",
    **values: Any,
) -> list[Moved]:
    """Move the executions in `which` that are in `before`, with their tallies and history."""
    moved: list[Moved] = []
    for state in sorted(before):
        statement = (
            update(execution)
            .where(which, standing.among([state]))
            .values(state=after.value, reason=reason, updated_at=now, **values)
            .returning(*_MOVED)
        )
        rows = [Moved(*row) for row in tx.execute(statement)]
        count(tx, rows, state, after)
        note(tx, now, rows, Step(state, after, reason, digest))
        moved += rows
    return moved


def set_generations(tx: Transaction, ids: Mapping[str, int], column: str = "generation") -> None:
    """Note which order an execution's device was last sent."""
    for some in chunks(sorted(ids.items())):
        rows = as_records([{"part": key, "generation": n} for key, n in some])
        tx.execute(_set_generations(tx.dialect.name, execution.c[column].name), {"rows": rows})


@cache
def _set_generations(dialect: str, column: str) -> TextClause:
    rows = records(dialect, "rows", part="text", generation="bigint")
    return text(
        f"UPDATE execution SET {column} = rows.generation FROM {rows}"  # noqa: S608 - our own words
        " WHERE execution.id = rows.part"
    )


def of_blueprint(name: str, blueprint: str) -> ColumnElement[bool]:
    """Return the condition for a rollout's executions, of one blueprint if it is named."""
    mine = execution.c.rollout == name
    return and_(mine, execution.c.blueprint == blueprint) if blueprint else mine


def among(ids: Collection[str]) -> ColumnElement[bool]:
    """Return the condition for these executions."""
    return execution.c.id.in_(sorted(ids))


def time_out(tx: Transaction, now: datetime, name: str, by: Overdue) -> list[Moved]:
    """Move those that `count_overdue` counts to TIMED_OUT."""
    condition = overdue.condition(name, by)
    return move(tx, now, condition, IN_FLIGHT, ExecutionState.TIMED_OUT, reason="silent")


def of_wave(name: str, wave: int, halted: Collection[str]) -> ColumnElement[bool]:
    """Return the condition for a wave's executions, but for halted blueprints."""
    mine = and_(execution.c.rollout == name, execution.c.wave == wave)
    return and_(mine, execution.c.blueprint.not_in(sorted(halted)))


def end_queued(
    tx: Transaction, now: datetime, name: str, which: ColumnElement[bool], step: "Step"
) -> None:
    """Move those in `which` that wait: one statement, however many."""
    waiting = and_(execution.c.rollout == name, which, standing.among([step.before]))
    keys = (execution.c.wave, execution.c.blueprint)
    counts = tx.execute(select(*keys, func.count()).where(waiting).group_by(*keys)).all()
    before, after = step.before.value, step.after.value
    said = (now, before, after, step.reason)
    columns = ("at", "before", "after", "reason")
    told = (literal(v, execution_event.c[c].type) for c, v in zip(columns, said, strict=True))
    happened = select(execution.c.id, *told)
    tx.execute(
        insert(execution_event).from_select(["execution_id", *columns], happened.where(waiting))
    )
    ended = {"state": after, "reason": step.reason, "updated_at": now}
    tx.execute(update(execution).where(waiting).values(**ended))
    tallies.count_down(tx, {(name, row[0], row[1], before): row[2] for row in counts})
    tallies.count_up(tx, {(name, row[0], row[1], after): row[2] for row in counts})


def correct_previous(tx: Transaction, ids: Collection[str]) -> None:
    """Let `previous` name what devices have said since the offer that they run beside our bundle.

    A device may confirm an older rollout's bundle after this one was offered to it, and before it
    begins: then that one is what it goes back to, not what it ran when the offer was made. Its
    events say so, or its state where an event is still on its way.
    """
    happened = device_history.c
    event = (
        select(happened.digest)
        .where(
            happened.device_id == execution.c.device_id,
            happened.kind == "active",
            happened.at >= execution.c.offered_at,
            happened.digest.not_in(["", execution.c.digest]),
        )
        .order_by(happened.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    state = (
        select(device.c.last_known_good)
        .where(
            device.c.id == execution.c.device_id,
            device.c.last_known_good.not_in(["", execution.c.digest]),
        )
        .scalar_subquery()
    )
    values = {"previous": func.coalesce(event, state, execution.c.previous)}
    tx.execute(
        update(execution).where(among(ids), execution.c.revert_generation == 0).values(values)
    )


def to_send_back(
    tx: Transaction, ids: Collection[str], states: Collection[ExecutionState]
) -> list[ExecutionRow]:
    """Return those of these whose device may run our bundle, and can be ordered back.

    It knows another bundle, has no newer order, and was not ordered back yet.
    """
    query = (
        select(*_COLUMNS)
        .join(desired, desired.c.device_id == execution.c.device_id)
        .where(
            among(ids),
            standing.among(states),
            execution.c.previous != "",
            execution.c.previous != execution.c.digest,
            execution.c.revert_generation == 0,
            desired.c.execution_id == execution.c.id,
        )
        .order_by(execution.c.device_id)
    )
    return [read_row(row) for row in tx.execute(query)]


def count(
    tx: Transaction, moved: Sequence[Moved], before: ExecutionState, after: ExecutionState
) -> None:
    """Move the tallies as the rows were moved."""
    counts = Counter((one.rollout, one.wave, one.blueprint) for one in moved)
    tallies.count_down(tx, {(*key, before.value): n for key, n in counts.items()})
    tallies.count_up(tx, {(*key, after.value): n for key, n in counts.items()})


class Step(NamedTuple):
    """What an execution's history says of a move."""

    before: ExecutionState
    after: ExecutionState
    reason: str = ""
    digest: str = ""


def note(tx: Transaction, now: datetime, moved: Sequence[Moved], step: Step) -> None:
    """Write a move into the history of each execution."""
    history.add(tx, now, [{"part": one.id, **step._asdict()} for one in moved])
