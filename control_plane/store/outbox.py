"""The one way out: messages stored with the change that caused them, published by the relays.

The last message of a topic must stay the last one, since the broker retains it. So topics are
spread over shards, a shard belongs to one relay at a time, and of several retained messages of a
topic only the newest is published: an order's payload is read from `desired` when it goes, not when
it was put here.

A relay holds shards for one batch: it takes free ones that have something, publishes the first
messages of each, deletes them when the broker has them, and gives the shards back. How many it
takes depends on how many relays are at work, so that they share what there is. A relay that dies
keeps its shards until its time is over.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import NamedTuple
from zlib import crc32

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    TextClause,
    TextualSelect,
    any_,
    bindparam,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy import delete as delete_from
from sqlalchemy.dialects.postgresql import ARRAY

from control_plane.domain.device import DeviceId
from control_plane.store import leases
from control_plane.store.bulk import as_records, chunks, plan_anew, records
from control_plane.store.database import Transaction
from control_plane.store.schema import desired, lease, outbox, outbox_shard

MQTT = "mqtt"
ORDER = "order"
SHARDS = 64
"""As many as rows in `outbox_shard`, which its migration wrote."""
FIRST, NEXT = 0, 1
"""Ranks: what takes something back does not wait behind what hands something out."""
_RELAY = "relay/"


@dataclass(frozen=True)
class Outgoing:
    """A message to publish."""

    topic: str
    payload: bytes
    retain: bool = False


class Sending(NamedTuple):
    """An order to send: the newest of this device when it goes out."""

    device: DeviceId
    topic: str
    rank: int = NEXT


class Due(NamedTuple):
    """A stored message that is to be published now."""

    id: int
    topic: str
    payload: bytes
    retain: bool


class Hold(NamedTuple):
    """Who holds shards: a relay, the unique name of its batch, and until when."""

    owner: str
    batch: str
    until: datetime


@dataclass(frozen=True)
class Batch:
    """What a relay is to publish for the shards that it holds under a name of their own."""

    name: str
    messages: Sequence[Due]


def shard_of(topic: str) -> int:
    """Return the shard of a topic."""
    return crc32(topic.encode()) % SHARDS


def put_all(tx: Transaction, now: datetime, messages: Sequence[Outgoing]) -> None:
    """Store messages to publish."""
    if messages:
        tx.execute(
            insert(outbox),
            [
                {
                    "kind": MQTT,
                    "topic": message.topic,
                    "payload": message.payload,
                    "retain": message.retain,
                    "created_at": now,
                    "shard": shard_of(message.topic),
                }
                for message in messages
            ],
        )


def put_orders(tx: Transaction, now: datetime, orders: Sequence[Sending]) -> None:
    """Store that devices are to be sent their newest order; the caller has locked it."""
    for some in chunks(orders):
        rows = [
            {"device": device, "topic": topic, "rank": rank, "shard": shard_of(topic)}
            for device, topic, rank in some
        ]
        tx.execute(_put_orders(tx.dialect.name), {"rows": as_records(rows), "at": now})


@cache
def _put_orders(dialect: str) -> TextClause:
    orders = records(
        dialect, "rows", device="text", topic="text", rank="smallint", shard="smallint"
    )
    nothing = {"postgresql": "CAST('' AS bytea)", "sqlite": "x''"}[dialect]
    return text(
        "INSERT INTO outbox (kind, topic, device_id, payload, retain, created_at, shard, rank,"  # noqa: S608 - our own words
        f" lease_owner) SELECT '{ORDER}', topic, device, {nothing}, true, :at, shard, rank, ''"
        f" FROM {orders}"
    ).bindparams(bindparam("at", type_=outbox.c.created_at.type))


# --- for the relays ---------------------------------------------------------------------------


def pending(tx: Transaction) -> bool:
    """Return whether a message waits, whoever publishes it; cheap, takes no lock."""
    return tx.execute(select(outbox.c.id).limit(1)).first() is not None


def join(tx: Transaction, now: datetime, *, owner: str, until: datetime) -> int:
    """Note that a relay is at work until then; return how many are."""
    leases.take(tx, _RELAY + owner, owner, now=now, until=until)
    working = lease.c.name.startswith(_RELAY, autoescape=True)
    query = select(func.count()).where(working, lease.c.until >= now, lease.c.holder != "")
    return int(tx.execute(query).scalar_one())


def take(tx: Transaction, now: datetime, hold: Hold, *, shards: int, limit: int) -> Batch:
    """Take free shards in which messages wait, and return the first messages of each.

    What another message of a topic replaces is forgotten; where nothing is left to publish, no
    shard is held.

    Args:
        tx: the transaction.
        now: the time.
        hold: for whom.
        shards: how many at most; those come first that nobody has taken for the longest.
        limit: how many messages, about.
    """
    free = or_(outbox_shard.c.owner == "", outbox_shard.c.until < now)
    waits = exists().where(outbox.c.shard == outbox_shard.c.shard)
    query = select(outbox_shard.c.shard).where(free, waits).order_by(outbox_shard.c.until)
    taken = list(tx.execute(query.limit(shards).with_for_update(skip_locked=True)).scalars())
    if not taken:
        return Batch(hold.batch, ())
    held = update(outbox_shard).where(outbox_shard.c.shard.in_(taken))
    tx.execute(held.values(**hold._asdict()))
    plan_anew(tx)
    # A statement of its own, after the shards are ours: it sees what their last relay left.
    given = taken if tx.dialect.name == "postgresql" else json.dumps(taken)
    found = tx.execute(_first(tx.dialect.name), {"shards": given, "each": -(-limit // len(taken))})
    rows = sorted(map(_Row._make, found), key=lambda row: (row.rank, row.id))
    due, replaced = _apart(rows)
    delete(tx, replaced, hold.batch)
    if not due:
        give_back(tx, hold.batch)
    return Batch(hold.batch, due)


class _Row(NamedTuple):
    kind: str
    rank: int
    id: int
    topic: str
    payload: bytes | None
    retain: bool


@cache
def _first(dialect: str) -> TextualSelect:
    """Return the first rows of each shard: as many steps into the index, however long the queue."""
    first = "SELECT {} FROM outbox AS o WHERE o.shard = {} ORDER BY o.rank, o.id LIMIT :each"
    source = {
        "postgresql": "unnest(CAST(:shards AS smallint[])) AS held(shard) CROSS JOIN LATERAL"
        f" ({first.format('*', 'held.shard')}) AS due",
        "sqlite": "json_each(:shards) AS held JOIN outbox AS due"
        f" ON due.id IN ({first.format('o.id', 'held.value')})",
    }[dialect]
    return text(
        f"SELECT due.kind, due.rank, due.id, due.topic, CASE due.kind WHEN '{ORDER}'"  # noqa: S608 - our own words
        f" THEN desired.envelope ELSE due.payload END AS payload, due.retain FROM {source}"
        " LEFT JOIN desired ON desired.device_id = due.device_id"
    ).columns(payload=desired.c.envelope.type, retain=outbox.c.retain.type)


def _apart(rows: Sequence[_Row]) -> tuple[list[Due], list[int]]:
    """Return what to publish, and what need not be: replaced, or of a device that is gone.

    Of a device's orders, which all say the same, the first goes; of other retained messages of a
    topic the last.
    """
    last: dict[str, int] = {}
    for row in rows:
        if row.kind == ORDER:
            last.setdefault(row.topic, row.id)
        elif row.retain:
            last[row.topic] = row.id
    due, replaced = [], []
    for row in rows:
        if row.payload is None or (row.retain and last[row.topic] != row.id):
            replaced.append(row.id)
        else:
            due.append(Due(row.id, row.topic, row.payload, row.retain))
    return due, replaced


def delete(tx: Transaction, ids: Sequence[int], batch: str) -> None:
    """Forget messages that the broker has, as long as their shards are held for this batch.

    SQLite gives numbers out again: one that was deleted may be a newer message's by now.
    """
    mine = outbox.c.shard.in_(
        select(outbox_shard.c.shard).where(outbox_shard.c.batch == batch).scalar_subquery()
    )
    for some in chunks(ids):
        tx.execute(delete_from(outbox).where(_among(tx, some), mine))


def _among(tx: Transaction, ids: Sequence[int]) -> ColumnElement[bool]:
    if tx.dialect.name == "postgresql":  # one parameter, and one plan for any number
        return outbox.c.id == any_(literal(list(ids), ARRAY(BigInteger)))
    return outbox.c.id.in_(ids)


def give_back(tx: Transaction, name: str) -> None:
    """Free the shards of a batch, those of them that nobody else has taken meanwhile."""
    tx.execute(update(outbox_shard).where(outbox_shard.c.batch == name).values(owner="", batch=""))


def prolong(tx: Transaction, names: Sequence[str], until: datetime) -> None:
    """Keep the shards of batches for longer, those that nobody else has taken meanwhile."""
    tx.execute(update(outbox_shard).where(outbox_shard.c.batch.in_(names)).values(until=until))


def release(tx: Transaction, owner: str) -> None:
    """Free all that `owner` holds, for others to take at once, and its place among the relays."""
    leases.give_back(tx, _RELAY + owner, owner)
    mine = outbox_shard.c.owner == owner
    tx.execute(update(outbox_shard).where(mine).values(owner="", batch=""))
