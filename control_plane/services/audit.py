"""The audit trail: who did what, and why."""

from typing import Any

from control_plane.domain import selector
from control_plane.domain.paging import DEFAULT_LIMIT, MAX_LIMIT, Page
from control_plane.services.cursors import number_cursor
from control_plane.services.scope import Scope
from control_plane.store import audit as store
from control_plane.store.audit import AuditEntry

__all__ = ["AuditEntry", "list_audit", "record"]


def record(
    scope: Scope,
    *,
    action: str,
    object_kind: str,
    object_name: str,
    reason: str = "",
    before: Any = None,
    after: Any = None,
) -> None:
    """Note an act of the scope's actor, in the transaction that carries it out."""
    store.add(
        scope.tx,
        {
            "at": scope.now,
            "actor": scope.actor,
            "action": action,
            "object_kind": object_kind,
            "object_name": object_name,
            "reason": reason,
            "before": before,
            "after": after,
        },
    )


def list_audit(
    scope: Scope,
    *,
    filter: str = "",  # noqa: A002 - the word of the API and the command line
    limit: int = DEFAULT_LIMIT,
    cursor: str = "",
) -> Page[AuditEntry]:
    """Return acts, the newest first.

    Args:
        scope: the scope.
        filter: over actor, action, kind, name and at, in the one filter grammar.
        limit: most entries of the page.
        cursor: where the page before ended.
    """
    wanted = selector.parse(filter, store.FIELDS, field="filter")
    size = max(1, min(limit, MAX_LIMIT))
    before_id = number_cursor(cursor)
    rows = store.newest(scope.tx, wanted, scope.now, before_id=before_id, limit=size + 1)
    return Page(rows[:size], str(rows[size - 1].id) if len(rows) > size else "")
