"""Webhooks and the deliveries that wait for them, leased by time: one sender holds each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete as delete_from
from sqlalchemy import func, insert, select, update

from control_plane.store.database import Transaction
from control_plane.store.schema import webhook, webhook_delivery


@dataclass(frozen=True)
class WebhookRow:
    """Who is told; `events` are types, none: all but the frequent ones."""

    id: str
    url: str
    secret: str
    events: tuple[str, ...]
    created_by: str
    created_at: datetime
    disabled_at: datetime | None
    disabled_why: str


@dataclass(frozen=True)
class DeliveryRow:
    """One event for one webhook, and how far it has come."""

    id: int
    webhook_id: str
    event_id: str
    type: str
    body: bytes
    created_at: datetime
    attempt: int
    next_at: datetime | None
    accepted_at: datetime | None
    answer: str


_WEBHOOK = tuple(webhook.c[name] for name in WebhookRow.__dataclass_fields__)
_EVERY = select(*_WEBHOOK).order_by(webhook.c.created_at, webhook.c.id)
_DELIVERY = tuple(webhook_delivery.c[name] for name in DeliveryRow.__dataclass_fields__)


def add(tx: Transaction, values: Mapping[str, Any]) -> None:
    """Store a webhook."""
    tx.execute(insert(webhook), dict(values))


def every(tx: Transaction) -> list[WebhookRow]:
    """Return all webhooks, the oldest first; there are few."""
    return [_read(list(row)) for row in tx.execute(_EVERY)]


def find(tx: Transaction, webhook_id: str) -> WebhookRow | None:
    """Return one webhook."""
    found = tx.execute(select(*_WEBHOOK).where(webhook.c.id == webhook_id)).one_or_none()
    return None if found is None else _read(list(found))


def delete(tx: Transaction, webhook_id: str) -> None:
    """Forget a webhook, and what waits for it."""
    tx.execute(delete_from(webhook_delivery).where(webhook_delivery.c.webhook_id == webhook_id))
    tx.execute(delete_from(webhook).where(webhook.c.id == webhook_id))


def disable(tx: Transaction, now: datetime, webhook_id: str, why: str) -> None:
    """Send nothing more to a webhook."""
    waiting = webhook_delivery.c.webhook_id == webhook_id
    tx.execute(update(webhook_delivery).where(waiting).values(next_at=None))
    values = {"disabled_at": now, "disabled_why": why}
    tx.execute(update(webhook).where(webhook.c.id == webhook_id).values(values))


def put(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store deliveries, due at once."""
    if rows:
        tx.execute(insert(webhook_delivery), list(rows))


def pending(tx: Transaction, now: datetime) -> bool:
    """Return whether a delivery is due; cheap, takes no lock."""
    due = select(webhook_delivery.c.id).where(webhook_delivery.c.next_at <= now).limit(1)
    return tx.execute(due).first() is not None


def lease(tx: Transaction, now: datetime, *, until: datetime, limit: int) -> list[DeliveryRow]:
    """Take due deliveries, one more attempt each; they are due again at `until`."""
    due = (
        select(webhook_delivery.c.id)
        .where(webhook_delivery.c.next_at <= now)
        .order_by(webhook_delivery.c.next_at, webhook_delivery.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = tx.execute(
        update(webhook_delivery)
        .where(webhook_delivery.c.id.in_(due.scalar_subquery()))
        .values(next_at=until, attempt=webhook_delivery.c.attempt + 1)
        .returning(*_DELIVERY)
    )
    return sorted((DeliveryRow(*row) for row in taken), key=lambda row: row.id)


def settle(
    tx: Transaction,
    delivery: DeliveryRow,
    *,
    answer: str,
    next_at: datetime | None,
    accepted_at: datetime | None,
) -> bool:
    """Note how an attempt ended; False when another sender has taken the delivery since."""
    mine = (
        webhook_delivery.c.id == delivery.id,
        webhook_delivery.c.attempt == delivery.attempt,
    )
    values = {"answer": answer, "next_at": next_at, "accepted_at": accepted_at}
    return tx.execute(update(webhook_delivery).where(*mine).values(values)).rowcount == 1


def deliveries(
    tx: Transaction, webhook_id: str, *, before_id: int | None, limit: int
) -> list[DeliveryRow]:
    """Return a webhook's deliveries, the newest first."""
    query = select(*_DELIVERY).where(webhook_delivery.c.webhook_id == webhook_id)
    if before_id is not None:
        query = query.where(webhook_delivery.c.id < before_id)
    query = query.order_by(webhook_delivery.c.id.desc()).limit(limit)
    return [DeliveryRow(*row) for row in tx.execute(query)]


def forget(tx: Transaction, before: datetime, limit: int) -> int:
    """Forget deliveries from before that wait for nothing; return how many."""
    old = (
        select(webhook_delivery.c.id)
        .where(webhook_delivery.c.created_at < before, webhook_delivery.c.next_at.is_(None))
        .order_by(webhook_delivery.c.id)
        .limit(limit)
    )
    gone = delete_from(webhook_delivery).where(webhook_delivery.c.id.in_(old.scalar_subquery()))
    return tx.execute(gone).rowcount


def waiting(tx: Transaction, webhook_id: str) -> int:
    """Return how many deliveries a webhook has not accepted yet."""
    mine = (
        webhook_delivery.c.webhook_id == webhook_id,
        webhook_delivery.c.next_at.is_not(None),
    )
    return int(tx.execute(select(func.count()).where(*mine)).scalar_one())


def _read(values: list[Any]) -> WebhookRow:
    values[3] = tuple(values[3])
    return WebhookRow(*values)
