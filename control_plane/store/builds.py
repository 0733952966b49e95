"""Build rows: the queue of builds, who holds each (a lease with a fence), and shared results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, insert, or_, select, update

from control_plane.store.bulk import insert_new
from control_plane.store.database import Transaction
from control_plane.store.schema import build as table
from control_plane.store.schema import build_result

Key = tuple[datetime, str]
"""Where a page ended: listings run from the newest to the oldest."""


@dataclass(frozen=True)
class BuildRow:
    """One build of (model version, blueprint)."""

    id: str
    model: str
    version: str
    blueprint: str
    blueprint_digest: str
    recipe: str
    waiver: str
    state: str
    progress: dict[str, Any]
    error: str
    digest: str
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


_COLUMNS = [table.c[name] for name in BuildRow.__dataclass_fields__]


@dataclass(frozen=True)
class Fence:
    """Which attempt may write: a worker that lost its lease matches no row any more."""

    id: str
    owner: str
    attempt: int

    @property
    def holds(self) -> ColumnElement[bool]:
        return and_(
            table.c.id == self.id,
            table.c.lease_owner == self.owner,
            table.c.attempt == self.attempt,
            table.c.state == "RUNNING",
        )


def find(tx: Transaction, build_id: str) -> BuildRow | None:
    """Return a build, or None."""
    row = tx.execute(select(*_COLUMNS).where(table.c.id == build_id)).one_or_none()
    return None if row is None else BuildRow(*row)


def newest(
    tx: Transaction, model: str, version: str, blueprint: str, blueprint_digest: str
) -> list[BuildRow]:
    """Return builds of one version for one blueprint as it is now, the newest first."""
    query = (
        select(*_COLUMNS)
        .where(
            table.c.model == model,
            table.c.version == version,
            table.c.blueprint == blueprint,
            table.c.blueprint_digest == blueprint_digest,
        )
        .order_by(table.c.created_at.desc(), table.c.id)
    )
    return [BuildRow(*row) for row in tx.execute(query)]


def add(tx: Transaction, row: BuildRow) -> None:
    """Store a new build."""
    values = {name: getattr(row, name) for name in BuildRow.__dataclass_fields__}
    tx.execute(insert(table).values(**values, lease_owner=""))


def _claimable(now: datetime) -> ColumnElement[bool]:
    abandoned = and_(table.c.state == "RUNNING", table.c.lease_until < now)
    return or_(table.c.state == "QUEUED", abandoned)


def due(tx: Transaction, now: datetime, limit: int) -> list[str]:
    """Return builds that nobody works on, the oldest first."""
    query = select(table.c.id).where(_claimable(now)).order_by(table.c.created_at).limit(limit)
    return list(tx.execute(query).scalars())


def claim(
    tx: Transaction,
    build_id: str,
    owner: str,
    blueprint_digest: str,
    *,
    now: datetime,
    until: datetime,
) -> bool:
    """Take a build that nobody works on; raises the fence. False if somebody was quicker."""
    done = tx.execute(
        update(table)
        .where(table.c.id == build_id, _claimable(now))
        .values(
            state="RUNNING",
            lease_owner=owner,
            lease_until=until,
            attempt=table.c.attempt + 1,
            started_at=now,
            blueprint_digest=blueprint_digest,
            progress={},
        )
    )
    return done.rowcount == 1


def renew(tx: Transaction, fence: Fence, progress: Mapping[str, Any], until: datetime) -> bool:
    """Keep the lease and note progress; False if it is lost."""
    done = tx.execute(
        update(table).where(fence.holds).values(lease_until=until, progress=dict(progress))
    )
    return done.rowcount == 1


def end(
    tx: Transaction, fence: Fence, state: str, now: datetime, *, digest: str = "", error: str = ""
) -> bool:
    """Finish a build; False if the lease is lost, and then nothing has changed."""
    done = tx.execute(
        update(table)
        .where(fence.holds)
        .values(
            state=state,
            digest=digest,
            error=error,
            finished_at=now,
            lease_until=None,
        )
    )
    return done.rowcount == 1


def give_up(tx: Transaction, build_id: str, attempts: int, error: str, now: datetime) -> bool:
    """Fail an abandoned build that was tried often enough; False if it is not one."""
    done = tx.execute(
        update(table)
        .where(table.c.id == build_id, _claimable(now), table.c.attempt >= attempts)
        .values(state="FAILED", error=error, finished_at=now, lease_until=None)
    )
    return done.rowcount == 1


def page(
    tx: Transaction, wanted: Mapping[str, str], limit: int, after: Key | None
) -> list[BuildRow]:
    """Return builds, the newest first; `wanted` maps columns to values, empty for any."""
    query = select(*_COLUMNS).where(*equal(table, wanted), *older(table, after))
    query = query.order_by(table.c.created_at.desc(), table.c.id).limit(limit)
    return [BuildRow(*row) for row in tx.execute(query)]


def equal(of: Table, wanted: Mapping[str, str]) -> list[ColumnElement[bool]]:
    """Return the conditions of a listing by plain values."""
    return [of.c[name] == value for name, value in wanted.items() if value]


def older(of: Table, after: Key | None) -> list[ColumnElement[bool]]:
    """Return the condition for what comes after a page's end."""
    if after is None:
        return []
    at, key = after
    return [or_(of.c.created_at < at, and_(of.c.created_at == at, of.c.id > key))]


def results(tx: Transaction, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return shared results by key."""
    query = select(build_result.c.key, build_result.c.result).where(build_result.c.key.in_(keys))
    return {row.key: row.result for row in tx.execute(query)}


def keep_results(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> None:
    """Share results; one that is there already stays, for it says the same."""
    insert_new(tx, build_result, rows)
