"""Presence: who gave no sign of life for too long is offline."""

from datetime import timedelta

from control_plane.services.scope import Scope
from control_plane.store import devices as store

SWEEP_LIMIT = 10_000
"""Devices called offline in one transaction, so that it ends within a second."""


def sweep(scope: Scope, *, limit: int = SWEEP_LIMIT) -> int:
    """Call a number of silent devices offline; return how many.

    The broker's word is only quicker: after it crashed, its retained "online" may stand for ever.
    """
    silent_since = scope.now - timedelta(seconds=scope.settings.silent_after_s)
    return store.sweep(scope.tx, silent_since, limit=limit)
