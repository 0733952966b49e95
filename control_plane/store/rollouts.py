"""Rollouts, their decisions, and what a plan is made from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    Select,
    Update,
    and_,
    bindparam,
    insert,
    literal,
    or_,
    select,
    tuple_,
    union_all,
    update,
)

from agent.protocol.words import ExecutionState
from control_plane.domain.rollout import ENDED, RolloutState
from control_plane.domain.selector import And, Compare, Fields, Kind, Not, Or, Selector, compares
from control_plane.store import filters, standing
from control_plane.store.database import Transaction
from control_plane.store.executions import ExecutionRow, columns, read_row
from control_plane.store.schema import (
    decision,
    execution,
    model_version,
    rollout,
)

FIELDS: Fields = {
    "name": Kind.TEXT,
    "model": Kind.TEXT,
    "version": Kind.TEXT,
    "state": Kind.TEXT,
    "created_by": Kind.TEXT,
    "created": Kind.TIME,
    "retries": Kind.TEXT,
}
EXECUTION_FIELDS: Fields = {
    "device": Kind.TEXT,
    "blueprint": Kind.TEXT,
    "wave": Kind.NUMBER,
    "state": Kind.TEXT,
    "reason": Kind.TEXT,
    "updated": Kind.TIME,
}
# What a tick has nothing to do for: not begun, or over.
_AT_REST = frozenset({RolloutState.DRAFT}) | ENDED


@dataclass(frozen=True)
class RolloutRow:
    """A rollout as stored; `machine` and `plan` are plain data."""

    name: str
    model: str
    version: str
    spec: dict[str, Any]
    state: str
    state_reason: str
    revision: int
    wave: int
    machine: dict[str, Any]
    plan: dict[str, Any]
    created_by: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    retries: str = ""
    pending: str = ""


@dataclass(frozen=True)
class DecisionRow:
    """One stored decision."""

    id: int
    at: datetime
    wave: int
    kind: str
    evidence: list[dict[str, Any]]
    inputs: dict[str, Any]
    actor: str
    reason: str


_COLUMNS = tuple(rollout.c[name] for name in RolloutRow.__dataclass_fields__)
_DECISION = tuple(decision.c[name] for name in DecisionRow.__dataclass_fields__)


# Built once: these run in every tick of every rollout.
_FIND = select(*_COLUMNS).where(rollout.c.name == bindparam("of"))
_LOCK = _FIND.with_for_update(key_share=True)
_ACTIVE = (
    select(rollout.c.name)
    .where(
        or_(
            rollout.c.state.not_in([state.value for state in _AT_REST]),
            rollout.c.pending != "",
        )
    )
    .order_by(rollout.c.created_at.desc(), rollout.c.name.desc())
)
_ADD_DECISION = insert(decision)


@cache
def _save(names: tuple[str, ...], *, revised: bool) -> Update:
    values = {name: bindparam(f"new_{name}", type_=rollout.c[name].type) for name in names}
    more = {"revision": rollout.c.revision + 1} if revised else {}
    return update(rollout).where(rollout.c.name == bindparam("of")).values({**values, **more})


@cache
def _decisions(*, before: bool, some: bool) -> Select[Any]:
    query: Select[Any] = select(*_DECISION).where(decision.c.rollout == bindparam("of"))
    if before:
        query = query.where(decision.c.id < bindparam("before_id"))
    if some:
        query = query.where(decision.c.kind.in_(bindparam("kinds", expanding=True)))
    return query.order_by(decision.c.id.desc()).limit(bindparam("limit"))


def find(tx: Transaction, name: str, *, lock: bool = False) -> RolloutRow | None:
    """Return a rollout; with `lock`, nobody else moves it until the transaction ends."""
    found = tx.execute(_LOCK if lock else _FIND, {"of": name}).one_or_none()
    return None if found is None else RolloutRow(*found)


def add(tx: Transaction, values: Mapping[str, Any]) -> None:
    """Store a new rollout."""
    tx.execute(insert(rollout), dict(values))


def save(tx: Transaction, name: str, *, revised: bool = True, **values: Any) -> None:
    """Change a locked rollout; `revised` makes it a new revision, as people see it."""
    statement = _save(tuple(sorted(values)), revised=revised)
    tx.execute(statement, {"of": name} | {f"new_{key}": value for key, value in values.items()})


def active(tx: Transaction) -> list[str]:
    """Return the rollouts that a tick looks at, the newest first.

    Newest first is also the order in which a newer one locks the older ones it supersedes.
    """
    return list(tx.execute(_ACTIVE).scalars())


def retries_of(tx: Transaction, name: str) -> list[tuple[str, str]]:
    """Return (name, state) of the rollouts that retry another, the newest first."""
    query = select(rollout.c.name, rollout.c.state).where(rollout.c.retries == name)
    rows = tx.execute(query.order_by(rollout.c.created_at.desc(), rollout.c.name.desc()))
    return [(row[0], row[1]) for row in rows]


def page(
    tx: Transaction,
    wanted: Selector,
    now: datetime,
    *,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[RolloutRow]:
    """Return rollouts, the newest first, after a key (created_at, name)."""
    named = {name: rollout.c[name] for name in FIELDS if name != "created"}
    query = select(*_COLUMNS).where(
        filters.clause(wanted, {**named, "created": rollout.c.created_at}, now)
    )
    if after is not None:
        at, name = after
        query = query.where(
            or_(
                rollout.c.created_at < at,
                and_(rollout.c.created_at == at, rollout.c.name < name),
            )
        )
    query = query.order_by(rollout.c.created_at.desc(), rollout.c.name.desc()).limit(limit)
    return [RolloutRow(*row) for row in tx.execute(query)]


def executions(
    tx: Transaction,
    name: str,
    wanted: Selector,
    now: datetime,
    *,
    after: tuple[int, int] | None,
    limit: int,
) -> list[ExecutionRow]:
    """Return executions in the order of the plan, after a key (wave, position).

    A stretch of the index for each standing, merged: a page costs the same wherever it begins, and
    one of a rare standing does not look for it among the others.
    """
    named = {
        "device": execution.c.device_id,
        "updated": execution.c.updated_at,
    } | {field: execution.c[field] for field in ("blueprint", "wave", "state", "reason")}
    mine = and_(execution.c.rollout == name, filters.clause(wanted, named, now))
    order = (execution.c.wave, execution.c.position)
    if after is not None:
        mine = and_(mine, tuple_(*order) > tuple_(*map(literal, after)))
    stretches = [
        select(*columns())
        .where(mine, execution.c.standing == one)
        .order_by(*order)
        .limit(limit)
        .subquery()
        for one in sorted({standing.of(state) for state in _states(wanted)})
    ]
    if not stretches:
        return []
    merged = union_all(*(select(*one.c) for one in stretches)).subquery()
    query = select(*merged.c).order_by(merged.c.wave, merged.c.position).limit(limit)
    return [read_row(row) for row in tx.execute(query)]


def _states(wanted: Selector) -> frozenset[ExecutionState]:
    """Return the states in which an execution may match; only what names a state rules one out."""
    match wanted:
        case Compare("state"):
            return frozenset(state for state in ExecutionState if compares(wanted, state.value))
        case Not(Compare("state") as inner):
            return frozenset(ExecutionState) - _states(inner)
        case And(parts):
            return frozenset.intersection(*map(_states, parts))
        case Or(parts):
            return frozenset.union(*map(_states, parts))
        case _:
            return frozenset(ExecutionState)


# --- decisions --------------------------------------------------------------------------------


def add_decision(tx: Transaction, values: Mapping[str, Any]) -> None:
    """Store a decision."""
    tx.execute(_ADD_DECISION, dict(values))


def decisions(
    tx: Transaction, name: str, *, before_id: int | None, limit: int, kinds: Collection[str] = ()
) -> list[DecisionRow]:
    """Return decisions, the newest first."""
    query = _decisions(before=before_id is not None, some=bool(kinds))
    values = {"of": name, "before_id": before_id, "kinds": sorted(kinds), "limit": limit}
    return [DecisionRow(*row) for row in tx.execute(query, values)]


def model_version_exists(tx: Transaction, model: str, version: str) -> bool:
    """Return whether the version is registered."""
    same = and_(model_version.c.model == model, model_version.c.version == version)
    return tx.execute(select(model_version.c.release).where(same)).scalar() is not None
