"""Answers kept by (actor, key), so that a repeated POST is answered and not repeated."""

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from control_plane.domain.errors import ConflictError
from control_plane.store.database import Transaction
from control_plane.store.schema import idempotency

MAX_KEY = 128
KEPT = timedelta(hours=24)


class Answer(NamedTuple):
    """What was answered the first time."""

    status: int
    body: bytes


def claim(tx: Transaction, now: datetime, actor: str, key: str, request: str) -> Answer | None:
    """Return the answer kept under `key`, or claim the key for this transaction.

    Args:
        tx: the transaction that will also hold the effect.
        now: the time.
        actor: whose key it is.
        key: the caller's.
        request: digest of the request, which must be the same in a repeat.

    Raises:
        ConflictError: the key was used for another request, or is being used just now.
    """
    table = idempotency.c
    tx.execute(delete(idempotency).where(table.actor == actor, table.created_at < now - KEPT))
    row = tx.execute(
        select(table.request_sha256, table.status, table.response).where(
            table.actor == actor, table.key == key
        )
    ).one_or_none()
    if row is None:
        _insert(tx, now, actor, key, request)
        return None
    if row.request_sha256 != request:
        raise ConflictError(
            f"{key[:40]!r} was used for another request; take a new key", field="Idempotency-Key"
        )
    return Answer(row.status, row.response)


def keep(tx: Transaction, actor: str, key: str, status: int, body: bytes) -> None:
    """Store the answer under the claimed key."""
    tx.execute(
        update(idempotency)
        .where(idempotency.c.actor == actor, idempotency.c.key == key)
        .values(status=status, response=body)
    )


def _insert(tx: Transaction, now: datetime, actor: str, key: str, request: str) -> None:
    values = {
        "actor": actor,
        "key": key,
        "request_sha256": request,
        "status": 0,
        "response": b"",
        "created_at": now,
    }
    try:
        tx.execute(insert(idempotency).values(values))
    except IntegrityError as error:
        raise ConflictError(
            f"a request with key {key[:40]!r} is in progress; repeat it in a moment",
            field="Idempotency-Key",
        ) from error
