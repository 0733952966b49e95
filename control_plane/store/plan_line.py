"""The line in which a rollout's devices stand, made in the database: temporary tables.

`stage` writes every device that matches, with its key in the order of
`domain/rollout_plan.make_plan`, or why it is a misfit. No device passes through Python. A million
of them take about 400 MB of memory and disk while they stand here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TextClause,
    and_,
    case,
    cast,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.schema import CreateTable

from control_plane.domain import rollout_plan as rules
from control_plane.domain.device import ACTIVE, SITE_LABEL
from control_plane.domain.rollout_plan import BlueprintFit
from control_plane.domain.selector import Selector
from control_plane.store import filters
from control_plane.store.database import Transaction
from control_plane.store.hashing import Bits, Hash, Plain
from control_plane.store.schema import device, device_label

WORK_MEM = "256MB"
"""For the sorts of one plan: two of a million narrow rows each fit, and do not go to disk."""
_temporary = MetaData()
_TEMPORARY: dict[str, Any] = {"prefixes": ["TEMPORARY"], "postgresql_on_commit": "DROP"}
line = Table(
    "plan_line",
    _temporary,
    Column("device_id", String(63), nullable=False),
    Column("blueprint", String(128), nullable=False),
    Column("site", String(128), nullable=False),
    Column("id", String(36), nullable=False),
    Column("why", String(16)),  # a misfit, by which rule; null: it fits
    Column("sel", Integer),  # the first wave whose selector it matches
    Column("mark", BigInteger, nullable=False),  # its hash: sums of it tell two plans apart
    Column("key", BigInteger, nullable=False),  # its place in the order
    **_TEMPORARY,
)
fit = Table(
    "plan_fit",
    _temporary,
    Column("blueprint", String(128), nullable=False),
    Column("number", BigInteger, nullable=False),  # in the order of the names
    Column("digest", String(64), nullable=False),
    Column("size", BigInteger),
    Column("failed", Boolean, nullable=False),
    **_TEMPORARY,
)
_site = Table(
    "plan_site",
    _temporary,
    Column("value", String(128), nullable=False),
    Column("mark", BigInteger, nullable=False),
    **_TEMPORARY,
)

_at = device_label.alias("at_site")  # a selector may ask for labels too
STATE, HARDWARE, BUNDLE, DISK = "state", "hardware", "bundle", "disk"
"""Why a device is a misfit, in the order in which the rules are asked."""
_LAST = 2**63 - 1
_BLUEPRINT, _SITE = 2 ** (rules.SITE_BITS + rules.DEVICE_BITS), 2**rules.DEVICE_BITS


@dataclass(frozen=True)
class Staged:
    """What stands in the temporary tables: how many match, and how many of them fit."""

    rollout: str
    matched: int
    fitting: int


def stage(
    tx: Transaction,
    rollout: str,
    wanted: Selector,
    waves: Sequence[Selector | None],
    *,
    fits: Mapping[str, tuple[str, BlueprintFit]],
    now: datetime,
) -> Staged:
    """Find and order the devices of a rollout.

    Args:
        tx: the transaction; `clear` ends the temporary tables before it does.
        rollout: its name; the hash is with it.
        wanted: its selector.
        waves: the selector of each wave that has one.
        fits: digest and fit of the bundle for each blueprint that there is.
        now: for selectors that ask how long ago.
    """
    clear(tx)
    if tx.dialect.name == "postgresql":
        tx.execute(select(func.set_config("work_mem", WORK_MEM, True)))  # noqa: FBT003 - SQL's
        tx.execute(select(func.set_config("jit", "off", True)))  # noqa: FBT003 - SQL's
    for statement in _creating(tx.dialect):
        tx.execute(statement)
    _write_fits(tx, fits)
    values = select(device_label.c.value).where(device_label.c.key == SITE_LABEL).distinct()
    sites = values.subquery()
    mark = Bits(Hash(_named(rollout), sites.c.value), rules.SITE_BITS)
    tx.execute(insert(_site).from_select(["value", "mark"], select(sites.c.value, mark)))
    rows = _ordered(rollout, _matching(rollout, wanted, waves, now))
    tx.execute(insert(line).from_select([column.name for column in line.c], rows))
    return Staged(rollout, *_counted(tx))


def clear(tx: Transaction) -> None:
    """Drop the temporary tables, if they are there."""
    for table in _temporary.tables:
        tx.execute(text(f"DROP TABLE IF EXISTS {'temp' if _lite(tx) else 'pg_temp'}.{table}"))


# --- the statements ---------------------------------------------------------------------------


@cache
def _creating(dialect: Dialect) -> tuple[TextClause, ...]:
    # Compiled once: SQLAlchemy would do so for every plan.
    tables = _temporary.sorted_tables
    return tuple(text(str(CreateTable(table).compile(dialect=dialect))) for table in tables)


def _write_fits(tx: Transaction, fits: Mapping[str, tuple[str, BlueprintFit]]) -> None:
    rows = [
        {
            "blueprint": name,
            "number": number,
            "digest": fits[name][0],
            "size": fits[name][1].size,
            "failed": bool(fits[name][1].failed),
        }
        for number, name in enumerate(sorted(fits))
    ]
    if rows:
        tx.execute(insert(fit), rows)


def _matching(
    rollout: str, wanted: Selector, waves: Sequence[Selector | None], now: datetime
) -> Any:
    """Return every device that matches, with its hash, and why not or in which selector's wave."""
    chosen: list[tuple[Any, Any]] = [
        (filters.device_clause(one, now), number)
        for number, one in enumerate(waves)
        if one is not None
    ]
    sel: Any = case(*chosen, else_=null()) if chosen else cast(null(), Integer)
    return (
        select(
            device.c.id.label("device_id"),
            func.coalesce(device.c.blueprint, "").label("blueprint"),
            func.coalesce(_at.c.value, "").label("site"),
            func.coalesce(_site.c.mark, rules.site_mark(rollout, "")).label("site_mark"),
            func.coalesce(fit.c.number, 0).label("number"),
            _why().label("why"),
            sel.label("sel"),
            Hash(_named(rollout), device.c.id).label("digest"),
        )
        .select_from(device)
        .outerjoin(
            _at,
            and_(_at.c.device_id == device.c.id, _at.c.key == SITE_LABEL),
        )
        .outerjoin(_site, _site.c.value == _at.c.value)
        .outerjoin(fit, fit.c.blueprint == device.c.blueprint)
        .where(filters.device_clause(wanted, now))
        .offset(0)  # PostgreSQL would else pull it apart and hash each device twice
        .subquery()
    )


def _why() -> ColumnElement[str | None]:
    # Asked last, of built bundles only, and once: reading JSON is the dearest part of a plan.
    free = func.nullif(device.c.hardware["disk_free_mb"].as_float(), 0)
    too_little = and_(fit.c.size.is_not(None), free < fit.c.size / float(rules.MB))
    found: ColumnElement[str | None] = case(
        (device.c.state != ACTIVE, STATE),
        (func.coalesce(device.c.blueprint, "") == "", HARDWARE),
        (or_(fit.c.blueprint.is_(None), fit.c.failed), BUNDLE),
        (too_little, DISK),
        else_=null(),
    )
    return found


def _ordered(rollout: str, matching: Any) -> Any:
    """Return the rows of `plan_line`: the t-th of those that fit gets the t-th key."""
    mark = Bits(matching.c.digest, rules.DEVICE_BITS).label("mark")
    marked = select(*matching.c, mark).offset(0).subquery()  # as above: worked out once
    at = marked.c.number * literal(_BLUEPRINT, BigInteger)
    at = at + marked.c.site_mark * literal(_SITE, BigInteger) + marked.c.mark
    # One number to sort by: three columns cost four times as much. Misfits come last.
    place = case((marked.c.why.is_(None), at), else_=literal(_LAST, BigInteger))
    kept = [marked.c[name] for name in ("device_id", "blueprint", "site", "why", "sel", "mark")]
    # No wider than what is stored, since all of it is sorted.
    narrow = select(*kept, func.substr(marked.c.digest, 1, 32).label("id"), place.label("place"))
    rows = narrow.offset(0).subquery()
    t = func.row_number().over(order_by=(rows.c.place, Plain(rows.c.device_id)))
    turned = (t + literal(rules.start(rollout), BigInteger)) * literal(rules.GOLDEN, BigInteger)
    return select(
        rows.c.device_id,
        rows.c.blueprint,
        rows.c.site,
        rows.c.id,
        rows.c.why,
        rows.c.sel,
        rows.c.mark,
        turned % literal(rules.KEYS, BigInteger),
    )


def _counted(tx: Transaction) -> tuple[int, int]:
    """Return how many match and how many of them fit.

    In the same pass over the line: each blueprint's first device goes before anybody's second.
    """
    fits = line.c.why.is_(None)
    numbers = (func.count(), func.count().filter(fits), func.min(line.c.key).filter(fits))
    found = tx.execute(select(*numbers).group_by(line.c.blueprint)).all()
    firsts = [row[2] for row in found if row[2] is not None]
    if firsts:
        moved = update(line).where(line.c.key.in_(firsts), fits)
        tx.execute(moved.values(key=line.c.key - rules.KEYS))
    return sum(row[0] for row in found), sum(row[1] for row in found)


def _named(rollout: str) -> ColumnElement[str]:
    return literal(f"{rollout}/", Text)


def _lite(tx: Transaction) -> bool:
    return tx.dialect.name == "sqlite"
