"""The fleet counted by facet: changed only with the rows that cause it, in their transaction.

A change is appended to `fleet_delta`, where no two transactions wait for one another; `fold` moves
it into `fleet_count`. Their sum is the truth at any moment, and `drift` holds it against the rows.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import (
    CompoundSelect,
    Select,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.dialects import postgresql, sqlite

from control_plane.domain.device import SITE_LABEL, health_of
from control_plane.store import health
from control_plane.store.database import Transaction
from control_plane.store.schema import device, device_label, fleet_count, fleet_delta

STATE, HEALTH, ONLINE, BLUEPRINT, DIGEST = "state", "health", "online", "blueprint", "digest"
SITE = "site"
YES, NO = "true", "false"

Cell = tuple[str, str]
"""(facet, value): ``("health", "offline")``."""
Counts = Counter[Cell]


@dataclass(frozen=True)
class Counted:
    """What is counted of one device's row."""

    state: str
    blueprint: str | None
    online: bool
    healthy: bool
    digest: str

    def cells(self) -> Iterator[Cell]:
        """Yield the cells in which the device stands, one a facet."""
        yield STATE, self.state
        yield HEALTH, health_of(state=self.state, online=self.online, healthy=self.healthy)
        yield ONLINE, YES if self.online else NO
        yield BLUEPRINT, self.blueprint or ""
        yield DIGEST, self.digest


def changes(pairs: Iterable[tuple[Counted | None, Counted | None]]) -> Counts:
    """Return what the counts change by when rows go from the one to the other; None: no row."""
    found: Counts = Counter()
    for before, after in pairs:
        if before == after:
            continue
        if before is not None:
            found.subtract(before.cells())
        if after is not None:
            found.update(after.cells())
    return found


def moved(before: str | None, after: str | None) -> Counts:
    """Return what the counts change by when a device goes from one site to another."""
    found: Counts = Counter()
    if before is not None:
        found[SITE, before] -= 1
    if after is not None:
        found[SITE, after] += 1
    return found


def add(tx: Transaction, changed: Counts) -> None:
    """Count a change with the rows that cause it."""
    rows = [{"facet": facet, "value": value, "n": n} for (facet, value), n in changed.items() if n]
    if rows:
        tx.execute(insert(fleet_delta), rows)


def read(tx: Transaction) -> dict[str, dict[str, int]]:
    """Return the counts by facet and value, without sites, which may be many."""
    found: dict[str, dict[str, int]] = {}
    for facet, value, n in tx.execute(_READ):
        found.setdefault(facet, {})[value] = int(n)
    return found


def sites(tx: Transaction, limit: int) -> dict[str, int]:
    """Return the counts of the largest sites."""
    return {value: int(n) for _, value, n in tx.execute(_SITES, {"most": limit})}


def fold(tx: Transaction, limit: int) -> int:
    """Move the oldest changes into the counts, at most `limit`; return how many."""
    oldest = (
        select(fleet_delta.c.id)
        .order_by(fleet_delta.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    gone = tx.execute(
        delete(fleet_delta)
        .where(fleet_delta.c.id.in_(oldest.scalar_subquery()))
        .returning(fleet_delta.c.facet, fleet_delta.c.value, fleet_delta.c.n)
    ).all()
    changed: Counts = Counter()
    for facet, value, n in gone:
        changed[facet, value] += n
    dialect = postgresql if tx.dialect.name == "postgresql" else sqlite
    raise_by = dialect.insert(fleet_count)
    raise_by = raise_by.on_conflict_do_update(
        index_elements=[fleet_count.c.facet, fleet_count.c.value],
        set_={"n": fleet_count.c.n + raise_by.excluded.n},
    )
    # In one order, since two schedulers may fold at once.
    rows = [
        {"facet": facet, "value": value, "n": n} for (facet, value), n in sorted(changed.items())
    ]
    if rows:
        tx.execute(raise_by, rows)
        _drop_empty(tx)
    return len(gone)


def _drop_empty(tx: Transaction) -> None:
    keys = (fleet_count.c.facet, fleet_count.c.value)
    # A row that another scheduler holds is left to it: to wait for it here could be a ring.
    empty = select(*keys).where(fleet_count.c.n == 0).with_for_update(skip_locked=True)
    tx.execute(delete(fleet_count).where(tuple_(*keys).in_(empty)))


def drift(tx: Transaction) -> dict[Cell, int]:
    """Return by how much each count is wrong, counted from the rows; empty when all are right."""
    return {(facet, value): int(n) for facet, value, n in tx.execute(_drift())}


def repair(tx: Transaction) -> int:
    """Make the counts right; return how many were wrong.

    One statement sees rows and counts at one moment, and adds what is missing as one more change:
    nobody else has to wait.
    """
    columns = ["facet", "value", "n"]
    made = insert(fleet_delta).from_select(columns, _drift()).returning(fleet_delta.c.id)
    return len(tx.execute(made).all())


# --- the queries ------------------------------------------------------------------------------

_summed = union_all(
    select(fleet_count.c.facet, fleet_count.c.value, fleet_count.c.n),
    select(fleet_delta.c.facet, fleet_delta.c.value, fleet_delta.c.n),
).subquery("summed")


def _totals() -> Select[str, str, int]:
    keys = (_summed.c.facet, _summed.c.value)
    total = func.sum(_summed.c.n)
    return select(*keys, total).group_by(*keys).having(total != 0)


# Built once: every look at the fleet asks them.
_READ = _totals().where(_summed.c.facet != SITE)
_SITES = (
    _totals()
    .where(_summed.c.facet == SITE)
    .order_by(func.sum(_summed.c.n).desc(), _summed.c.value)
    .limit(bindparam("most"))
)


def _rows() -> CompoundSelect[str, str, int]:
    """Return every cell counted from the rows, in one pass over the devices."""
    seen = (
        select(
            device.c.state.label("state"),
            health.word().label("health"),
            case((device.c.online, YES), else_=NO).label("online"),
            func.coalesce(device.c.blueprint, "").label("blueprint"),
            device.c.digest.label("digest"),
            func.count().label("n"),
        )
        .group_by("state", "health", "online", "blueprint", "digest")
        .cte("seen")
    )
    facets = (STATE, HEALTH, ONLINE, BLUEPRINT, DIGEST)
    counted = [
        select(literal(facet).label("facet"), seen.c[facet].label("value"), func.sum(seen.c.n))
        .group_by(seen.c[facet])
        for facet in facets
    ]  # fmt: skip
    labelled = (
        select(literal(SITE), device_label.c.value, func.count())
        .where(device_label.c.key == SITE_LABEL)
        .group_by(device_label.c.value)
    )
    return union_all(*counted, labelled)


def _drift() -> Select[str, str, int]:
    rows = _rows().subquery("counted_rows")
    facet, value, n = rows.c
    both = union_all(
        select(facet.label("facet"), value.label("value"), n.label("n")),
        select(_summed.c.facet, _summed.c.value, -_summed.c.n),
    ).subquery("both")
    keys = (both.c.facet, both.c.value)
    wrong = func.sum(both.c.n)
    return select(*keys, wrong).group_by(*keys).having(wrong != 0)
