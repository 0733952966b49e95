"""Calling a model version invalid everywhere: in plans, builds, rollouts, bytes and on devices."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from control_plane.domain import rollout_view as words
from control_plane.domain.errors import InvalidError
from control_plane.domain.rollout import RolloutState
from control_plane.services import audit, models, withdrawal
from control_plane.services.models import ModelVersionView
from control_plane.services.rollout_orders import NOTHING_VALID
from control_plane.services.rollout_reads import find
from control_plane.services.rollout_tick import step
from control_plane.services.scope import Scope
from control_plane.store import invalidations as store

MOST_NAMED = 1000
MAX_REASON = 2000


@dataclass(frozen=True)
class Ended:
    """A rollout that the invalidation ended, and its state now."""

    name: str
    state: str


@dataclass(frozen=True)
class Invalidated:
    """What an invalidation did; the counts are of devices that say they run the version."""

    model: str
    version: str
    invalidated_by: str
    invalidated_at: datetime
    reason: str
    rollouts: list[Ended]
    builds: int
    """Builds that waited or ran."""
    running: int
    returning: int
    """Ordered back to a valid bundle that they ran before."""
    moving: int
    """On their way to another version."""
    nothing_to_go_back_to: list[str]
    """Devices that were to go back and know nothing valid; the first thousand."""


def invalidate(
    scope: Scope,
    model: str,
    version: str,
    *,
    reason: str,
    devices: Literal["keep", "revert"] = "keep",
) -> Invalidated:
    """Call a version invalid, for good: nothing plans, starts, builds or is served it again.

    Its unfinished rollouts end. With `revert`, devices that run it and know a valid bundle from
    before are ordered back to that. Asked again it does the same for whoever runs it by then.

    Args:
        scope: the scope.
        model: the model.
        version: its version.
        reason: why; whoever is refused will read it.
        devices: whether those that run it keep it.

    Raises:
        NotFoundError: no such version.
        InvalidError: no reason is given.
    """
    why = reason.strip()[:MAX_REASON]
    if not why:
        raise InvalidError("say why: whoever is refused it will read it", field="reason")
    models.get_version(scope, model, version)
    # In the order that everybody keeps: the version, rollouts from the newest on, desired rows.
    first = store.mark(scope.tx, model, version, store.Invalid(scope.actor, scope.now, why))
    unfinished = store.lock_rollouts(scope.tx, model, version)
    said = f"{model} {version} was invalidated by {scope.actor}: {why}"
    ended = [_end(scope, name, devices, said) for name in unfinished]
    builds = store.fail_builds(scope.tx, model, version, said, scope.now)
    _stop_wrong_returns(scope)
    if devices == "revert":
        withdrawal.order_back(scope, store.to_return(scope.tx, model, version))
    known = models.get_version(scope, model, version)
    done = _outcome(scope, known, ended, builds=builds, devices=devices)
    audit.record(
        scope,
        action="model.invalidate" if first else "model.invalidate_again",
        object_kind="model",
        object_name=f"{model} {version}",
        reason=why,
        after={
            "devices": devices,
            "rollouts": [one.name for one in ended],
            "builds": builds,
            "returning": done.returning,
        },
    )
    return done


def _end(scope: Scope, name: str, devices: Literal["keep", "revert"], said: str) -> Ended:
    """End one rollout; what is being taken back already goes on going back."""
    row = find(scope, name, lock=True)
    if row.state != RolloutState.REVERTING:
        mode = "keep" if row.state == RolloutState.DRAFT else devices
        step(scope, row, words.Abort(mode, said), said)
    return Ended(name, find(scope, name).state)


def _stop_wrong_returns(scope: Scope) -> None:
    """Take back orders to return to a bundle that is invalid by now, from whatever rollout."""
    wrong = store.wrong_returns(scope.tx)
    ids = [one.id for one in wrong]
    withdrawal.hold(scope, wrong)
    store.no_return(scope.tx, ids)
    store.set_reason(scope.tx, ids, NOTHING_VALID)


def _outcome(
    scope: Scope, known: ModelVersionView, ended: list[Ended], *, builds: int, devices: str
) -> Invalidated:
    where = store.whereabouts(scope.tx, known.model, known.version)
    stuck: list[str] = []
    if devices == "revert":
        stuck = store.staying(scope.tx, known.model, known.version, MOST_NAMED)
    return Invalidated(
        model=known.model,
        version=known.version,
        invalidated_by=known.invalidated_by,
        invalidated_at=known.invalidated_at or scope.now,
        reason=known.invalid_reason,
        rollouts=ended,
        builds=builds,
        running=sum(where.values()),
        returning=where["returning"],
        moving=where["moving"],
        nothing_to_go_back_to=stuck,
    )
