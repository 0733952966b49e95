"""Reads a rollout's plan off the line of its devices, shows it, and stores it.

The order and the waves are those of `domain/rollout_plan.make_plan`. Planning costs less than
three times the bare INSERT of as many rows (tests/benchmarks/plan.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    and_,
    case,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    text,
    true,
)

from agent.protocol.words import ExecutionState
from control_plane.domain import rollout_plan as rules
from control_plane.domain.device import DeviceFacts, DeviceId
from control_plane.domain.rollout import WaveSpec
from control_plane.store import tallies
from control_plane.store.database import Transaction
from control_plane.store.hashing import Plain
from control_plane.store.plan_line import STATE, Staged, fit, line
from control_plane.store.schema import device, execution

MANY = 1_000
"""Rows from which on the database is told at once how its table has changed."""


@dataclass(frozen=True)
class Places:
    """Which keys go to which wave, and how many each wave has."""

    wave: ColumnElement[int | None]
    sizes: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.sizes)


@dataclass(frozen=True)
class Part:
    """The devices of one blueprint in one wave; `mark` changes with who they are."""

    wave: int
    blueprint: str
    n: int
    mark: int


@dataclass(frozen=True)
class AtSite:
    """What a wave brings to a site; `sites` is how many sites the wave reaches."""

    wave: int
    site: str
    n: int
    bytes: int
    sites: int


@dataclass(frozen=True)
class Misfits:
    """How many devices one rule leaves out; `state` is theirs where that is the reason."""

    why: str
    blueprint: str
    state: str
    n: int


def places(tx: Transaction, staged: Staged, waves: Sequence[WaveSpec]) -> Places:
    """Read off where each wave ends."""
    whens: list[tuple[Any, Any]] = []
    sizes: list[int] = []
    low, left = -rules.KEYS, staged.fitting
    for number, wave in enumerate(waves):
        mine = and_(line.c.why.is_(None), line.c.key >= low)
        if wave.selector:
            counted = select(func.count()).where(mine, line.c.sel == number)
            n = int(tx.execute(counted).scalar_one())
            whens.append((line.c.sel == number, number))
        else:
            n = min(left, rules.room(wave, staged.fitting - left, staged.fitting))
            low = _end(tx, and_(mine, _unclaimed(number)), low, n, left)
            whens.append((line.c.key < low, number))
        sizes.append(n)
        left -= n
    return Places(case(*whens, else_=null()), tuple(sizes))


def parts(tx: Transaction, found: Places) -> list[Part]:
    """Count the plan per wave and blueprint, in that order."""
    placed = _placed(found)
    keys = (placed.c.wave, placed.c.blueprint)
    query = select(*keys, func.count(), func.sum(placed.c.mark)).group_by(*keys)
    return sorted(
        (Part(row[0], row[1], row[2], int(row[3])) for row in tx.execute(query)),
        key=lambda part: (part.wave, part.blueprint),
    )


def at_sites(tx: Transaction, found: Places, most: int) -> list[AtSite]:
    """Return the sites of each wave to which most bytes go, at most so many of a wave."""
    placed = _placed(found)
    size = func.sum(func.coalesce(fit.c.size, 0))
    counted = (
        select(placed.c.wave, placed.c.site, func.count().label("n"), size.label("bytes"))
        .join(fit, fit.c.blueprint == placed.c.blueprint)
        .group_by(placed.c.wave, placed.c.site)
        .subquery()
    )
    largest = (counted.c.bytes.desc(), counted.c.n.desc(), Plain(counted.c.site))
    turn = func.row_number().over(partition_by=counted.c.wave, order_by=largest).label("turn")
    sites = func.count().over(partition_by=counted.c.wave).label("sites")
    ranked = select(*counted.c, sites, turn).subquery()
    query = select(*ranked.c).where(ranked.c.turn <= most).order_by(ranked.c.wave, ranked.c.turn)
    return [AtSite(row[0], row[1], row[2], int(row[3]), row[4]) for row in tx.execute(query)]


def first_devices(tx: Transaction, found: Places, wave: int, most: int) -> list[str]:
    """Return the first devices of a wave, in its order."""
    query = select(line.c.device_id).where(line.c.why.is_(None), found.wave == wave)
    return list(tx.execute(query.order_by(line.c.key).limit(most)).scalars())


def misfits(tx: Transaction) -> list[Misfits]:
    """Count who matches and cannot get it."""
    keys = (line.c.why, line.c.blueprint)
    query = select(*keys, func.count()).where(line.c.why.is_not(None)).group_by(*keys)
    counted = tx.execute(query.order_by(*keys)).all()
    found = [Misfits(row[0], row[1], "", row[2]) for row in counted if row[0] != STATE]
    if len(found) == len(counted):
        return found
    states = (
        select(device.c.state, func.count())
        .where(device.c.id.in_(select(line.c.device_id).where(line.c.why == STATE)))
        .group_by(device.c.state)
        .order_by(device.c.state)
    )
    return found + [Misfits(STATE, "", row[0], row[1]) for row in tx.execute(states)]


def first_misfits(tx: Transaction, most: int) -> list[DeviceFacts]:
    """Return the first of those, by device, with what the reason depends on."""
    order = Plain(line.c.device_id)
    first = select(line.c.device_id).where(line.c.why.is_not(None)).order_by(order).limit(most)
    ids = list(tx.execute(first).scalars())
    columns = (device.c.id, device.c.state, device.c.blueprint, device.c.hardware)
    query = select(*columns).where(device.c.id.in_(ids)).order_by(Plain(device.c.id))
    return [
        DeviceFacts(DeviceId(row[0]), state=row[1], blueprint=row[2], hardware=row[3])
        for row in tx.execute(query)
    ]


def store(
    tx: Transaction, now: datetime, rollout: str, found: Places, counted: Sequence[Part]
) -> None:
    """Store the plan: executions, all QUEUED, in the order of their offers, and their tallies."""
    placed = _placed(found)
    order = placed.c.wave * literal(4 * rules.KEYS, BigInteger) + placed.c.key
    starts = {wave: sum(found.sizes[:wave]) + 1 for wave in range(len(found.sizes))}
    number = func.row_number().over(order_by=order)
    position = number - case(starts, value=placed.c.wave, else_=0)
    columns = (placed.c.id, placed.c.device_id, placed.c.wave, placed.c.blueprint)
    ordered = select(*columns, position.label("position")).subquery()
    rows = select(
        *ordered.c,
        fit.c.digest,
        literal(rollout).label("rollout"),
        literal(ExecutionState.QUEUED.value).label("state"),
        literal(now, execution.c.updated_at.type).label("updated_at"),
    ).join_from(ordered, fit, fit.c.blueprint == ordered.c.blueprint)
    tx.execute(
        insert(execution).from_select([column.name for column in rows.selected_columns], rows)
    )
    queued = ExecutionState.QUEUED.value
    tallies.count_up(tx, {(rollout, one.wave, one.blueprint, queued): one.n for one in counted})
    if found.total >= MANY and not _lite(tx):
        # A tick must not wait for the database to notice: it would read the whole plan until then.
        # A sample of 3,000 rows says enough of states and waves; the database looks closer later.
        tx.execute(select(func.set_config("default_statistics_target", "10", true())))
        tx.execute(text("ANALYZE execution"))


# --- the statements ---------------------------------------------------------------------------


def _unclaimed(wave: int) -> ColumnElement[bool]:
    """Return the condition that no earlier wave's selector has taken the device."""
    return or_(line.c.sel.is_(None), line.c.sel > wave)


def _end(tx: Transaction, left: ColumnElement[bool], low: int, n: int, of: int) -> int:
    """Return the key at which a wave of the next n of those that are left ends."""
    if n == of:
        return rules.KEYS
    if n == 0:
        return low
    next_ = select(line.c.key).where(left).order_by(line.c.key).offset(n).limit(1)
    return int(tx.execute(next_).scalar_one())


def _placed(found: Places) -> Any:
    wave = found.wave.label("wave")
    columns = (line.c.device_id, line.c.blueprint, line.c.site, line.c.id, line.c.mark)
    return (
        select(*columns, line.c.key, wave)
        .where(line.c.why.is_(None), found.wave.is_not(None))
        .subquery()
    )


def _lite(tx: Transaction) -> bool:
    return tx.dialect.name == "sqlite"
