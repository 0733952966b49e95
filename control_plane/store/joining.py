"""Devices that match a rollout since they changed: found by what changed, not in the fleet."""

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import Select, and_, exists, func, literal_column, or_, select, union_all, update

from control_plane.domain.device import ACTIVE, DeviceFacts, DeviceId
from control_plane.domain.selector import Selector
from control_plane.store import filters, standing
from control_plane.store.database import Transaction
from control_plane.store.schema import device, execution, rollout

LIMIT = 1_000
"""Devices taken in with one step."""
OVERLAP = timedelta(minutes=2)
"""A change is dated when its transaction begins and seen when it ends; none takes so long."""


def touched(tx: Transaction, ids: Collection[str], now: datetime) -> None:
    """Note that labels, hardware or blueprint of devices have changed."""
    if ids:
        tx.execute(update(device).where(device.c.id.in_(sorted(ids))).values(facts_at=now))


def newcomers(
    tx: Transaction, name: str, wanted: Selector, now: datetime, blueprints: Collection[str]
) -> list[DeviceFacts]:
    """Return the first devices that changed, match, have a bundle, and are not in the rollout.

    Nor have they been offered a newer rollout of no lower priority: that one has taken them over.
    """
    of = rollout.c
    since = select(of.facts_seen_at, of.created_at, of.priority).where(of.name == name)
    seen_at, created_at, priority = tx.execute(since).one()
    # A newer one would have superseded us there, had the device been ours already.
    newer = or_(of.created_at > created_at, and_(of.created_at == created_at, of.name > name))
    taken = exists().where(
        execution.c.device_id == device.c.id,
        execution.c.offered_at.is_not(None),
        execution.c.rollout == of.name,
        newer,
        of.priority >= priority,
    )
    mine = exists().where(execution.c.rollout == name, execution.c.device_id == device.c.id)
    query = (
        select(device.c.id, device.c.state, device.c.blueprint, device.c.hardware)
        .where(
            device.c.facts_at > (seen_at or created_at) - OVERLAP,
            device.c.state == ACTIVE,
            device.c.blueprint.in_(sorted(blueprints)),
            filters.device_clause(wanted, now),
            ~mine,
            ~taken,
        )
        .order_by(device.c.facts_at, device.c.id)
        .limit(LIMIT)
    )
    return [
        DeviceFacts(DeviceId(row[0]), state=row[1], blueprint=row[2], hardware=row[3], labels={})
        for row in tx.execute(query)
    ]


def pass_over(tx: Transaction, name: str, now: datetime) -> None:
    """Note that no device that changed until now, less the overlap, still has to join."""
    changed = or_(rollout.c.facts_seen_at.is_(None), rollout.c.facts_seen_at < now - OVERLAP)
    tx.execute(update(rollout).where(rollout.c.name == name, changed).values(facts_seen_at=now))


def next_position(tx: Transaction, name: str, wave: int) -> int:
    """Return the position behind the last device of a wave: one look at the index a standing."""
    last = [
        select(func.max(execution.c.position).label("at")).where(
            and_(
                execution.c.rollout == name,
                execution.c.wave == wave,
                execution.c.standing == one,
            )
        )
        for one in standing.ALL
    ]
    newest: Select[int | None] = select(func.max(literal_column("at"))).select_from(
        union_all(*last).subquery()
    )
    found = tx.execute(newest).scalar()
    return 0 if found is None else int(found) + 1
