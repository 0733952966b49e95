"""The one way out: messages stored with the change that caused them, leased by the relays.

The last message of a topic must stay the last one, since the broker retains it. So a topic belongs
to one relay at a time, and of several retained messages only the newest is published.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from sqlalchemy import (
    ColumnElement,
    TextClause,
    and_,
    bindparam,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy import delete as delete_from

from control_plane.domain.device import DeviceId
from control_plane.store.bulk import among, as_records, chunks, records
from control_plane.store.database import Transaction
from control_plane.store.schema import outbox

MQTT = "mqtt"
# PostgreSQL's advisory lock under which relays lease, one after the other: none of them may miss
# what another one is just taking.
_LEASING = 0x666C6F74


@dataclass(frozen=True)
class Outgoing:
    """A message to publish."""

    topic: str
    payload: bytes
    retain: bool = False


@dataclass(frozen=True)
class Leased:
    """A stored message that one relay holds for a while."""

    id: int
    topic: str
    payload: bytes
    retain: bool


def put_mqtt(tx: Transaction, now: datetime, topic: str, payload: bytes, retain: bool) -> None:  # noqa: FBT001 - MQTT's own word, last as in its packet
    """Store one message to publish."""
    put_all(tx, now, [Outgoing(topic, payload, retain)])


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
                    "lease_owner": "",
                }
                for message in messages
            ],
        )


def put_orders(tx: Transaction, now: datetime, topics: Mapping[DeviceId, str]) -> None:
    """Store the newest order of each device, as it stands in `desired`, to publish on its topic."""
    for some in chunks(sorted(topics.items())):
        rows = as_records([{"device": device, "topic": topic} for device, topic in some])
        tx.execute(_put_orders(tx.dialect.name), {"rows": rows, "at": now})


@cache
def _put_orders(dialect: str) -> TextClause:
    wanted = records(dialect, "rows", device="text", topic="text")
    return text(
        "INSERT INTO outbox (kind, topic, payload, retain, created_at, lease_owner)"  # noqa: S608 - our own words
        f" SELECT '{MQTT}', rows.topic, desired.envelope, true, :at, ''"
        f" FROM {wanted} JOIN desired ON desired.device_id = rows.device"
    ).bindparams(bindparam("at", type_=outbox.c.created_at.type))


def pending(tx: Transaction, now: datetime) -> bool:
    """Return whether a message waits that no relay holds; cheap, takes no lock."""
    return tx.execute(select(outbox.c.id).where(*_free(now)).limit(1)).first() is not None


def lease(
    tx: Transaction, now: datetime, *, owner: str, until: datetime, limit: int
) -> list[Leased]:
    """Take the oldest messages that nobody holds; they are this owner's until `until`.

    What a newer retained message of the same topic has replaced is forgotten instead.
    """
    if tx.dialect.name == "postgresql":
        tx.execute(select(func.pg_advisory_xact_lock(_LEASING)))
    oldest = (
        select(outbox.c.id)
        .where(*_free(now), ~_topic_held(now, owner))
        .order_by(outbox.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = tx.execute(
        update(outbox)
        .where(outbox.c.id.in_(oldest.scalar_subquery()))
        .values(lease_owner=owner, lease_until=until)
        .returning(outbox.c.id, outbox.c.topic, outbox.c.payload, outbox.c.retain)
    )
    leased = sorted((Leased(*row) for row in taken), key=lambda message: message.id)
    return _newest(tx, leased, owner)


def _topic_held(now: datetime, owner: str) -> ColumnElement[bool]:
    """Return whether another relay is publishing a message of the same topic."""
    other = outbox.alias("other")
    return exists().where(
        other.c.topic == outbox.c.topic,
        other.c.lease_owner.not_in(("", owner)),
        other.c.lease_until >= now,
    )


def _newest(tx: Transaction, leased: Sequence[Leased], owner: str) -> list[Leased]:
    """Forget the messages that a newer one replaces, and return the others."""
    retained = sorted({message.topic for message in leased if message.retain})
    last: dict[str, int] = {}
    for some in chunks(retained):
        newest = select(outbox.c.topic, func.max(outbox.c.id)).where(
            and_(among(tx, outbox.c.topic, some), outbox.c.retain.is_(True), outbox.c.kind == MQTT)
        )
        last.update((row[0], row[1]) for row in tx.execute(newest.group_by(outbox.c.topic)))
    replaced = [m.id for m in leased if m.retain and m.id < last.get(m.topic, m.id)]
    delete(tx, replaced, owner)
    gone = set(replaced)
    return [message for message in leased if message.id not in gone]


def delete(tx: Transaction, ids: Sequence[int], owner: str) -> None:
    """Forget messages that the broker has, as long as they are this owner's.

    SQLite gives numbers out again: one that was deleted may be a newer message's by now.
    """
    for some in chunks(ids):
        mine = outbox.c.lease_owner == owner
        tx.execute(delete_from(outbox).where(outbox.c.id.in_(some), mine))


def release(tx: Transaction, owner: str) -> None:
    """Give back what `owner` holds, for others to take at once."""
    tx.execute(
        update(outbox)
        .where(outbox.c.kind == MQTT, outbox.c.lease_owner == owner)
        .values(lease_owner="", lease_until=None)
    )


def _free(now: datetime) -> tuple[ColumnElement[bool], ...]:
    held = or_(outbox.c.lease_until.is_(None), outbox.c.lease_until < now)
    return (outbox.c.kind == MQTT, held)
