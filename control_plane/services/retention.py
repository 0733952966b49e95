"""What the control plane forgets, and when: see docs/capacity.md for what it costs to remember.

Never forgotten: the audit log, executions and their counts, and anything of a rollout that has not
ended. A report's key is forgotten by `services.reports.forget`, a message by the relay that sent
it, a heartbeat was never stored.
"""

from datetime import timedelta

from control_plane.services.scope import Scope
from control_plane.store import retention as store

LIMIT = 10_000
"""Rows looked at in one transaction: some tenths of a second."""
ANSWERS = "idempotency"
TABLES = (*store.RULES, ANSWERS)


def sweep(scope: Scope, table: str, *, limit: int = LIMIT) -> int:
    """Forget a bounded stretch of one table; return how many rows were forgotten.

    Args:
        scope: a scope for this alone.
        table: one of TABLES.
        limit: most rows to look at.
    """
    if table == ANSWERS:
        return store.forget_answers(scope.tx, scope.now, limit)
    memory_s = _memory_s(scope, table)
    if memory_s <= 0:
        return 0
    before = scope.now - timedelta(seconds=memory_s)
    return store.sweep(scope.tx, table, before, limit).forgotten


def _memory_s(scope: Scope, table: str) -> int:
    settings = scope.settings
    return {
        "execution_event": settings.event_memory_s,
        "bench_series": settings.trial_series_memory_s,
        "bench": settings.trial_memory_s,
        "device_history": settings.history_memory_s,
        "decision": settings.decision_memory_s,
    }[table]
