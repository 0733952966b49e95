"""Model versions that a person has called invalid: what names them, and who runs them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, case, exists, func, or_, select, update

from agent.protocol.words import Action
from control_plane.domain.device import DeviceId
from control_plane.domain.rollout import IN_FLIGHT
from control_plane.store import executions
from control_plane.store.bulk import chunks
from control_plane.store.database import Transaction
from control_plane.store.schema import (
    build,
    bundle,
    desired,
    device,
    execution,
    model_version,
    rollout,
)

_INVALID = model_version.c.invalidated_at.is_not(None)
_OF_BUNDLE = and_(
    model_version.c.model == bundle.c.model, model_version.c.version == bundle.c.version
)


@dataclass(frozen=True)
class Invalid:
    """Who called a version invalid, when and why."""

    by: str
    at: datetime
    reason: str


@dataclass(frozen=True)
class Return:
    """A device that runs the version, and the part that tells what it ran before."""

    device: DeviceId
    id: str
    rollout: str
    previous: str


def find(tx: Transaction, model: str, version: str, *, hold: bool = False) -> Invalid | None:
    """Return why a version is invalid; None if it is not, or does not exist.

    With `hold` nobody can invalidate it until the transaction ends; whoever holds a rollout's lock
    must not ask for that: the lock of a version comes before those of rollouts.
    """
    query = select(
        model_version.c.invalidated_by,
        model_version.c.invalidated_at,
        model_version.c.invalid_reason,
    ).where(model_version.c.model == model, model_version.c.version == version)
    if hold:
        query = query.with_for_update(read=True)
    found = tx.execute(query).one_or_none()
    return None if found is None or found[1] is None else Invalid(*found)


def mark(tx: Transaction, model: str, version: str, invalid: Invalid) -> bool:
    """Call a version invalid; False if it is already. Waits for whoever is planning with it."""
    changed = tx.execute(
        update(model_version)
        .where(model_version.c.model == model, model_version.c.version == version, ~_INVALID)
        .values(invalidated_at=invalid.at, invalidated_by=invalid.by, invalid_reason=invalid.reason)
    )
    return changed.rowcount == 1


def lock_rollouts(tx: Transaction, model: str, version: str) -> list[str]:
    """Lock what an invalidation may touch; return the version's unfinished ones, newest first.

    All unfinished ones, of every version: one of them may be sending devices back to this one.
    """
    of_it = and_(rollout.c.model == model, rollout.c.version == version)
    executions.lock_rollouts(tx, or_(of_it, executions.unfinished()))
    query = select(rollout.c.name).where(of_it, executions.unfinished())
    return list(
        tx.execute(query.order_by(rollout.c.created_at.desc(), rollout.c.name.desc())).scalars()
    )


def fail_builds(tx: Transaction, model: str, version: str, error: str, now: datetime) -> int:
    """Fail what waits or runs for a version; a worker that runs it loses its lease."""
    waiting = and_(
        build.c.model == model,
        build.c.version == version,
        build.c.state.in_(["QUEUED", "RUNNING"]),
    )
    values: dict[str, Any] = {"state": "FAILED", "error": error, "finished_at": now}
    return tx.execute(update(build).where(waiting).values(**values, lease_until=None)).rowcount


def among(tx: Transaction, digests: Collection[str]) -> set[str]:
    """Return those of these bundles that are of an invalid version."""
    found: set[str] = set()
    for some in chunks(sorted(digests)):
        query = select(bundle.c.digest).join(model_version, _OF_BUNDLE)
        found.update(tx.execute(query.where(bundle.c.digest.in_(some), _INVALID)).scalars())
    return found


def why_not_served(tx: Transaction, digest: str) -> Invalid | None:
    """Return why a bundle is no longer served to devices; None if it is."""
    query = (
        select(
            model_version.c.invalidated_by,
            model_version.c.invalidated_at,
            model_version.c.invalid_reason,
        )
        .join(bundle, _OF_BUNDLE)
        .where(bundle.c.digest == digest, _INVALID)
    )
    found = tx.execute(query).one_or_none()
    return None if found is None else Invalid(*found)


# --- devices ----------------------------------------------------------------------------------


def running(model: str, version: str) -> ColumnElement[bool]:
    """Return the condition on `device` for those that say they run the version."""
    of_it = select(bundle.c.digest).where(bundle.c.model == model, bundle.c.version == version)
    return device.c.digest.in_(of_it)


def _moving() -> ColumnElement[bool]:
    """On their way to another version: an open part says where."""
    theirs = execution.alias("theirs")
    return exists().where(
        theirs.c.device_id == device.c.id,
        theirs.c.state.in_([state.value for state in IN_FLIGHT]),
    )


def _returning() -> ColumnElement[bool]:
    return exists().where(
        desired.c.device_id == device.c.id,
        desired.c.action == Action.REVERT.value,
        desired.c.digest != device.c.digest,
    )


def to_return(tx: Transaction, model: str, version: str) -> list[Return]:
    """Return devices that run the version, are not on their way, and know a valid previous."""
    newest_first = func.row_number().over(
        partition_by=execution.c.device_id,
        order_by=(execution.c.offered_at.desc(), execution.c.id.desc()),
    )
    valid = exists().where(bundle.c.digest == execution.c.previous, _OF_BUNDLE, ~_INVALID)
    ranked = (
        select(
            execution.c.device_id,
            execution.c.id,
            execution.c.rollout,
            execution.c.previous,
            newest_first.label("rank"),
        )
        .join(device, device.c.id == execution.c.device_id)
        .where(
            running(model, version),
            execution.c.offered_at.is_not(None),
            execution.c.digest == device.c.digest,
            execution.c.previous.not_in(["", device.c.digest]),
            valid,
            ~_moving(),
            ~_returning(),
        )
        .subquery()
    )
    query = select(ranked).where(ranked.c.rank == 1).order_by(ranked.c.device_id)
    return [Return(DeviceId(row[0]), row[1], row[2], row[3]) for row in tx.execute(query)]


def wrong_returns(tx: Transaction) -> list[executions.Moved]:
    """Return parts whose device is ordered back to an invalid bundle and does not run it yet."""
    query = (
        select(
            execution.c.id,
            execution.c.rollout,
            execution.c.device_id,
            execution.c.wave,
            execution.c.blueprint,
        )
        .join(desired, desired.c.execution_id == execution.c.id)
        .join(device, device.c.id == execution.c.device_id)
        .join(bundle, bundle.c.digest == desired.c.digest)
        .join(model_version, _OF_BUNDLE)
        .where(
            _INVALID,
            desired.c.action == Action.REVERT.value,
            execution.c.reverted.is_(False),
            device.c.digest != desired.c.digest,
        )
        .order_by(execution.c.device_id)
    )
    return [executions.Moved(*row) for row in tx.execute(query)]


def set_reason(tx: Transaction, ids: Sequence[str], reason: str) -> None:
    """Say in parts that have ended what could not be done for their devices."""
    for some in chunks(ids):
        tx.execute(update(execution).where(execution.c.id.in_(some)).values(reason=reason))


def no_return(tx: Transaction, ids: Sequence[str]) -> None:
    """Expect no return of these: there is nothing that they could go back to."""
    for some in chunks(ids):
        tx.execute(update(execution).where(execution.c.id.in_(some)).values(revert_generation=0))


def whereabouts(tx: Transaction, model: str, version: str) -> dict[str, int]:
    """Count the devices that run the version: `returning`, `moving` on, or `staying`."""
    word = case((_returning(), "returning"), (_moving(), "moving"), else_="staying")
    query = select(word, func.count()).where(running(model, version)).group_by(word)
    found = {"returning": 0, "moving": 0, "staying": 0}
    return found | {row[0]: row[1] for row in tx.execute(query)}


def staying(tx: Transaction, model: str, version: str, limit: int) -> list[str]:
    """Return the first devices that run the version and have no order away from it."""
    query = select(device.c.id).where(running(model, version), ~_moving(), ~_returning())
    return list(tx.execute(query.order_by(device.c.id).limit(limit)).scalars())
