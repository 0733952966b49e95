"""The fleet as people see it: devices with what they run and what they are asked to run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import JSON, ColumnElement, Select, case, func, literal, select

from control_plane.domain.device import HEALTHY, DeviceId
from control_plane.domain.selector import All, Selector
from control_plane.store import filters, fleet_order, rollups
from control_plane.store.bulk import among_bound, chunks
from control_plane.store.database import Transaction
from control_plane.store.fleet_order import Order, Place, Stretch
from control_plane.store.schema import (
    bundle,
    desired,
    device,
    device_history,
    device_label,
    execution,
)

# By another name: a filter's own look at `bundle` must not be taken for this one.
_running = bundle.alias("running")
MOST_SITES = 50
FEW = 5_000
"""So many ids are read and sorted at once rather than looked for in one stretch after another."""


@dataclass(frozen=True)
class DeviceView:
    """One device."""

    id: DeviceId
    state: str
    blueprint: str | None
    labels: dict[str, str]
    hardware: dict[str, Any]
    agent_version: str
    online: bool
    last_seen_at: datetime | None
    enrolled_at: datetime
    generation: int
    desired_generation: int
    digest: str
    model: str
    version: str
    recipe: str
    last_known_good: str
    healthy: bool
    execution: str
    execution_state: str


@dataclass(frozen=True)
class HistoryEntry:
    """Something that happened to a device."""

    id: int
    at: datetime
    kind: str
    version: str
    digest: str
    execution: str
    why: str


@dataclass(frozen=True)
class FleetSummary:
    """The fleet in numbers; devices that run no known bundle count under the version ""."""

    total: int
    online: int
    healthy: int
    by_version: dict[str, int]
    by_blueprint: dict[str, int]
    by_state: dict[str, int]
    by_health: dict[str, int]
    by_site: dict[str, int]
    """The largest sites; a device without the label is in none."""


def page(
    tx: Transaction,
    selector: Selector,
    now: datetime,
    *,
    order: Order,
    after: Place | None,
    limit: int,
) -> tuple[list[DeviceView], Place | None]:
    """Return matching devices in an order, behind a place, and where they end.

    First the ids, read off an index; then what a page shows of them: as many statements for ten
    devices as for a thousand. The place is None when nothing follows.
    """
    wanted = filters.device_clause(filters.resolved(tx, selector), now)
    left = fleet_order.stretches(tx, order, after)
    found: list[Place] = []
    rest: list[Place] | None = None
    for number, stretch in enumerate(left):
        if number == 1 and len(left) > 2 and selector != All():  # noqa: PLR2004 - one more is no walk
            rest = _few(tx, wanted, left[1:], order)
        if rest is not None:
            found += rest
            break
        value = literal(None) if stretch.column is None else stretch.column
        query = select(value, device.c.id).where(wanted, stretch.condition)
        query = query.where(fleet_order.behind(stretch, order, after))
        by = fleet_order.columns(stretch, order)
        rows = tx.execute(query.order_by(*by).limit(limit + 1 - len(found)))
        found += [Place(stretch.key, *row) for row in rows]
        if len(found) > limit:
            break
    shown = found[:limit]
    views = {view.id: view for view in _of(tx, [place.id for place in shown])}
    end = shown[-1] if len(found) > limit else None
    return [views[DeviceId(place.id)] for place in shown], end


def _few(
    tx: Transaction, wanted: ColumnElement[bool], left: Sequence[Stretch], order: Order
) -> list[Place] | None:
    """Return all that match in the stretches left if they are few, else None.

    A filter that hardly anything matches would be searched for in one stretch after the other.
    """
    if any(stretch.column is not None for stretch in left):
        return None
    rank = case(*((stretch.condition, number) for number, stretch in enumerate(left)))
    some = select(rank.label("rank"), device.c.id).where(wanted, rank.is_not(None)).limit(FEW + 1)
    rows = some.subquery("some")
    by = rows.c.id.desc() if order.descending else rows.c.id
    found = tx.execute(select(rows.c.rank, rows.c.id).order_by(rows.c.rank, by)).all()
    if len(found) > FEW:
        return None
    return [Place(left[rank].key, None, device_id) for rank, device_id in found]


def one(tx: Transaction, device_id: str) -> DeviceView | None:
    """Return one device."""
    found = _of(tx, [device_id])
    return found[0] if found else None


def history(
    tx: Transaction, device_id: str, *, before_id: int | None, limit: int
) -> list[HistoryEntry]:
    """Return what happened to a device, the newest first, older than the line `before_id`."""
    query = select(
        device_history.c.id,
        device_history.c.at,
        device_history.c.kind,
        device_history.c.version,
        device_history.c.digest,
        device_history.c.execution_id,
        device_history.c.why,
    ).where(device_history.c.device_id == device_id)
    if before_id is not None:
        query = query.where(device_history.c.id < before_id)
    newest = query.order_by(device_history.c.id.desc()).limit(limit)
    return [HistoryEntry(*row) for row in tx.execute(newest)]


def summary(tx: Transaction) -> FleetSummary:
    """Return the fleet in numbers, from counts that changed with the rows: no device is looked at.

    One statement reads all but the sites, so that they are of one moment.
    """
    counted = rollups.read(tx)
    states = counted.get(rollups.STATE, {})
    health = counted.get(rollups.HEALTH, {})
    return FleetSummary(
        total=sum(states.values()),
        online=counted.get(rollups.ONLINE, {}).get(rollups.YES, 0),
        healthy=health.get(HEALTHY, 0),
        by_version=_versions(tx, counted.get(rollups.DIGEST, {})),
        by_blueprint=counted.get(rollups.BLUEPRINT, {}),
        by_state=states,
        by_health=health,
        by_site=rollups.sites(tx, MOST_SITES),
    )


@cache
def _devices(dialect: str) -> Select[Any]:
    """Return the statement for what is shown of the devices `ids`, built once."""
    labels = select(_as_object(dialect, device_label.c.key, device_label.c.value))
    labels = labels.where(device_label.c.device_id == device.c.id)
    return (
        select(
            device.c.id,
            device.c.state,
            device.c.blueprint,
            labels.scalar_subquery(),
            device.c.hardware,
            device.c.agent_version,
            device.c.online,
            device.c.last_seen_at,
            device.c.enrolled_at,
            device.c.generation,
            func.coalesce(desired.c.generation, 0),
            device.c.digest,
            func.coalesce(_running.c.model, ""),
            func.coalesce(_running.c.version, ""),
            func.coalesce(_running.c.recipe, ""),
            device.c.last_known_good,
            device.c.healthy,
            func.coalesce(execution.c.id, ""),
            func.coalesce(execution.c.state, ""),
        )
        .select_from(device)
        .outerjoin(desired, desired.c.device_id == device.c.id)
        .outerjoin(_running, _running.c.digest == device.c.digest)
        .outerjoin(execution, execution.c.id == desired.c.execution_id)
        .where(among_bound(dialect, device.c.id, "ids"))
    )


def _of(tx: Transaction, ids: Sequence[str]) -> list[DeviceView]:
    if not ids:
        return []
    rows = tx.execute(_devices(tx.dialect.name), {"ids": list(ids)}).all()
    found: list[DeviceView] = []
    for row in rows:
        # By position: by name, half of the time of a page went into names.
        values: list[Any] = [*row]
        values[3] = dict(sorted((row[3] or {}).items()))
        found.append(DeviceView(*values))
    return found


def _as_object(
    dialect: str, key: ColumnElement[str], value: ColumnElement[str]
) -> ColumnElement[Any]:
    """Return the aggregate of keys and values to one object; null of none."""
    if dialect == "postgresql":
        return func.json_object_agg(key, value, type_=JSON)
    # SQLite makes {} of none.
    return func.json_group_object(key, value, type_=JSON)


@cache
def _names(dialect: str) -> Select[str, str, str]:
    query = select(bundle.c.digest, bundle.c.model, bundle.c.version)
    return query.where(among_bound(dialect, bundle.c.digest, "digests"))


def _versions(tx: Transaction, running: Mapping[str, int]) -> dict[str, int]:
    known: dict[str, str] = {}
    for some in chunks(sorted(running)):
        for digest, model, version in tx.execute(_names(tx.dialect.name), {"digests": some}):
            known[digest] = f"{model} {version}"
    found: Counter[str] = Counter()
    for digest, n in running.items():
        found[known.get(digest, "")] += n
    return dict(found)
