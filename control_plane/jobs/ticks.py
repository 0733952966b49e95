"""The scheduler's tick: one short transaction per rollout and step, none where nothing is due."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from control_plane.observability import logger
from control_plane.services import rollouts
from control_plane.services.rollout_views import TickResult
from control_plane.services.scope import Scope
from control_plane.store import leases
from control_plane.store.database import is_lock_timeout, is_outage

# One tick goes round the rollouts so often at most, so that none keeps the others waiting for
# long; what is left over is done by the next tick.
MAX_ROUNDS = 50
LOCK_WAIT_S = 10.0

Opener = Callable[[], AbstractContextManager[Scope]]

log = logger(__name__)


def tick(reading: Opener, writing: Opener) -> TickResult:
    """Move every rollout that is due as far as it goes.

    Each step is a transaction of its own: what a gate has stopped is stopped from its commit on,
    whatever becomes of the rest, and a kill loses one step, which the next tick takes again. A
    rollout that fails, or is locked for long, does not hold up the others.

    Args:
        reading: opens a scope that only reads.
        writing: opens a scope whose transaction is committed at its end.
    """
    with reading() as scope:
        names = rollouts.due(scope)
    decided = offered = 0
    waiting = names
    for _ in range(MAX_ROUNDS):
        going: list[str] = []
        for name in waiting:
            done = _step(writing, name)
            decided += done.decisions
            offered += done.offered
            going += done.going
        waiting = going
        if not waiting:
            break
    return TickResult(len(names), decided, offered, waiting)


def _step(writing: Opener, name: str) -> TickResult:
    try:
        with writing() as scope:
            leases.wait_at_most(scope.tx, LOCK_WAIT_S)
            return rollouts.tick(scope, [name], steps=1)
    except Exception as error:
        if is_outage(error) and not is_lock_timeout(error):
            raise
        log.exception("rollout.tick_failed", rollout=name, error=str(error)[:500])
        return TickResult(1, 0, 0)
