"""The audit rows: who did what to which object, and why."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select

from control_plane.domain.selector import Fields, Kind, Selector
from control_plane.store import filters
from control_plane.store.database import Transaction
from control_plane.store.schema import audit

FIELDS: Fields = {
    "actor": Kind.TEXT,
    "action": Kind.TEXT,
    "kind": Kind.TEXT,
    "name": Kind.TEXT,
    "at": Kind.TIME,
}
_COLUMNS = {
    "actor": audit.c.actor,
    "action": audit.c.action,
    "kind": audit.c.object_kind,
    "name": audit.c.object_name,
    "at": audit.c.at,
}


_ADD = insert(audit)


@dataclass(frozen=True)
class AuditEntry:
    """One act."""

    id: int
    at: datetime
    actor: str
    action: str
    object_kind: str
    object_name: str
    reason: str
    before: Any
    after: Any


def add(tx: Transaction, entry: dict[str, Any]) -> None:
    """Store one act."""
    tx.execute(_ADD, entry)


def newest(
    tx: Transaction, selector: Selector, now: datetime, *, before_id: int | None, limit: int
) -> list[AuditEntry]:
    """Return matching acts, the newest first, older than the act `before_id`."""
    query = select(
        audit.c.id,
        audit.c.at,
        audit.c.actor,
        audit.c.action,
        audit.c.object_kind,
        audit.c.object_name,
        audit.c.reason,
        audit.c.before,
        audit.c.after,
    ).where(filters.clause(selector, _COLUMNS, now))
    if before_id is not None:
        query = query.where(audit.c.id < before_id)
    return [AuditEntry(*row) for row in tx.execute(query.order_by(audit.c.id.desc()).limit(limit))]
