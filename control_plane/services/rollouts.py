"""Rollouts: plan, create and steer; reading is in rollout_reads, moving in rollout_tick."""

from typing import Literal

from control_plane.domain import rollout_view as words
from control_plane.domain.errors import ConflictError, InvalidError
from control_plane.domain.rollout import RolloutSpec, RolloutState
from control_plane.domain.rollout_verbs import kind_of
from control_plane.domain.rollout_view import Event, Machine
from control_plane.services import (
    audit,
    rollout_approvals,
    rollout_codec,
    rollout_document,
    rollout_planning,
)
from control_plane.services import retry as retrying
from control_plane.services.rollout_reads import (
    benchmarks,
    decisions,
    executions,
    explain,
    find,
    get,
    list_rollouts,
    view_of,
)
from control_plane.services.rollout_tick import builds_event, due, step, tick
from control_plane.services.rollout_views import (
    BenchView,
    DecisionView,
    ExecutionView,
    Explanation,
    MetricView,
    MisfitView,
    PlannedWave,
    PlanView,
    RolloutView,
    TickResult,
    WaveView,
)
from control_plane.services.scope import Scope
from control_plane.services.validity import refuse_invalid
from control_plane.store import executions as execution_store
from control_plane.store import rollouts as store
from control_plane.store.rollouts import RolloutRow

__all__ = [
    "BenchView",
    "DecisionView",
    "ExecutionView",
    "Explanation",
    "MetricView",
    "MisfitView",
    "PlanView",
    "PlannedWave",
    "RolloutView",
    "TickResult",
    "WaveView",
    "abort",
    "approve",
    "benchmarks",
    "create",
    "decisions",
    "deny",
    "due",
    "executions",
    "explain",
    "get",
    "list_rollouts",
    "pause",
    "plan",
    "promote",
    "replace",
    "resume",
    "retry",
    "revert",
    "start",
    "tick",
]


def plan(scope: Scope, spec: RolloutSpec) -> PlanView:
    """Say exactly what a rollout would do; changes nothing."""
    refuse_invalid(scope, spec.model, spec.version)
    return rollout_planning.view(scope, spec, rollout_planning.make(scope, spec))


def create(scope: Scope, spec: RolloutSpec, *, retries: str = "", reason: str = "") -> RolloutView:
    """Store a rollout as a DRAFT, with its plan: what is stored is what will happen.

    Args:
        scope: the scope.
        spec: what is asked for.
        retries: the rollout whose failed devices this one is for; empty for a plain one.
        reason: why; for the audit trail.

    Raises:
        ConflictError: the name is taken.
        InvalidatedError: the version was called invalid.
    """
    refuse_invalid(scope, spec.model, spec.version, hold=True)
    if store.find(scope.tx, spec.name) is not None:
        raise ConflictError(
            f"rollout {spec.name} exists; choose another name", field="metadata.name"
        )
    planned = rollout_planning.make(scope, spec)
    document = rollout_document.to_document(spec)["spec"]
    store.add(
        scope.tx,
        {
            "name": spec.name,
            "model": spec.model,
            "version": spec.version,
            "spec": document,
            "state": RolloutState.DRAFT.value,
            "revision": 1,
            "machine": rollout_codec.plain(Machine()),
            "plan": rollout_planning.summary(planned),
            "created_by": scope.actor,
            "created_at": scope.now,
            "retries": retries,
            "priority": spec.priority,
        },
    )
    rollout_planning.keep(scope, spec, planned)
    _audit(scope, "create", spec.name, reason=reason, after=document)
    return get(scope, spec.name)


def replace(
    scope: Scope, name: str, spec: RolloutSpec, *, revision: int | None = None
) -> RolloutView:
    """Change a rollout that has not been started, and plan it again; the same one: no change."""
    refuse_invalid(scope, spec.model, spec.version, hold=True)  # before any rollout's lock
    row = find(scope, name, lock=True)
    _check_revision(row, revision)
    document = rollout_document.to_document(spec)["spec"]
    if document == row.spec and spec.name == name:
        return view_of(scope, row)
    if row.state != RolloutState.DRAFT or spec.name != name:
        raise ConflictError(
            f"rollout {name} is {row.state}: only a DRAFT can change; give the new one a new name",
            field="metadata.name",
        )
    planned = rollout_planning.make(scope, spec)
    execution_store.clear(scope.tx, name)
    store.save(
        scope.tx,
        name,
        model=spec.model,
        version=spec.version,
        spec=document,
        priority=spec.priority,
        edited_by=scope.actor,
        plan=rollout_planning.summary(planned),
    )
    rollout_planning.keep(scope, spec, planned)
    _audit(scope, "replace", name, before=row.spec, after=document)
    return get(scope, name)


def start(scope: Scope, name: str, *, reason: str = "", revision: int | None = None) -> RolloutView:
    """Begin: request what is not built; with every bundle there, open the first wave."""
    asked = find(scope, name)
    refuse_invalid(scope, asked.model, asked.version)
    _steer(scope, name, words.Start(), reason, revision)
    row = find(scope, name)
    event = builds_event(scope, row)
    if event is not None:
        step(scope, find(scope, name), event)
    return get(scope, name)


def pause(scope: Scope, name: str, *, reason: str = "", revision: int | None = None) -> RolloutView:
    """Stop offering; what was offered and not begun is taken back into the queue."""
    return _steer(scope, name, words.Pause(), reason, revision)


def resume(
    scope: Scope, name: str, *, reason: str = "", revision: int | None = None
) -> RolloutView:
    """Go on; after a halt this acknowledges the failures so far, and only new ones count."""
    return _steer(scope, name, words.Resume(), reason, revision)


def promote(
    scope: Scope, name: str, *, reason: str = "", revision: int | None = None
) -> RolloutView:
    """Open the next wave although its gates hold; never over a failure budget."""
    return _steer(scope, name, words.Promote(), reason, revision)


def approve(
    scope: Scope, name: str, *, reason: str = "", revision: int | None = None
) -> RolloutView:
    """Let the wave open that waits for people; it opens once enough of them have.

    Raises:
        ForbiddenError: the actor wrote it, or is not among those who may approve this wave.
        IllegalTransitionError: no wave waits.
    """
    rollout_approvals.give(scope, find(scope, name, lock=True))
    return _steer(scope, name, words.Approve(scope.actor), reason, revision)


def deny(scope: Scope, name: str, *, reason: str = "", revision: int | None = None) -> RolloutView:
    """Say no to the wave that waits for a person: the rollout ends, devices keep what they run.

    Raises:
        InvalidError: no reason is given; whoever planned it must be able to read why.
    """
    why = reason.strip()
    if not why:
        raise InvalidError("say why: whoever planned the rollout will read it", field="reason")
    return _steer(scope, name, words.Deny(scope.actor, why), why, revision)


def revert(
    scope: Scope, name: str, *, reason: str = "", revision: int | None = None
) -> RolloutView:
    """Order every device that was updated back to what it ran before."""
    return _steer(scope, name, words.Revert(), reason, revision)


def abort(
    scope: Scope,
    name: str,
    *,
    mode: Literal["keep", "revert"] = "keep",
    reason: str = "",
    revision: int | None = None,
) -> RolloutView:
    """Give it up: devices keep what they run, or go back to what they ran before."""
    return _steer(scope, name, words.Abort(mode), reason, revision)


def retry(
    scope: Scope,
    name: str,
    *,
    new_name: str = "",
    include_rejected: bool = False,
    reason: str = "",
    revision: int | None = None,
) -> RolloutView:
    """Make a rollout with the same policy for the devices that failed in an ended one.

    Args:
        scope: the scope.
        name: the rollout that has ended.
        new_name: of the new one; empty: NAME-retry-1, -2 and so on.
        include_rejected: also those that refused it.
        reason: why.
        revision: of the old one, as it was seen.

    Raises:
        IllegalTransitionError: the old one has not ended.
        ConflictError: an unfinished rollout retries it already, or there is nothing to retry.
    """
    old = find(scope, name)
    refuse_invalid(scope, old.model, old.version, hold=True)  # before any rollout's lock
    row = find(scope, name, lock=True)
    _check_revision(row, revision)
    spec = retrying.spec_for(scope, row, new_name, include_rejected=include_rejected)
    try:
        made = create(scope, spec, retries=name, reason=reason)
    except InvalidError as error:
        if error.field != "spec.selector":
            raise
        nobody = f"nothing to retry: no device that failed in {name} can get it now"
        raise ConflictError(f"{nobody} ({error.message})") from error
    _audit(scope, "retry", name, reason=reason, after={"retried_by": spec.name})
    return made


def _steer(scope: Scope, name: str, event: Event, reason: str, revision: int | None) -> RolloutView:
    row = find(scope, name, lock=True)
    _check_revision(row, revision)
    step(scope, row, event, reason)
    after = get(scope, name)
    _audit(
        scope,
        kind_of(event),
        name,
        reason=reason,
        before={"state": row.state},
        after={"state": after.state},
    )
    return after


def _check_revision(row: RolloutRow, revision: int | None) -> None:
    if revision is not None and revision != row.revision:
        raise ConflictError(
            f"rollout {row.name} is at revision {row.revision}, not {revision}: read it again",
            field="revision",
        )


def _audit(
    scope: Scope,
    act: str,
    name: str,
    *,
    reason: str = "",
    before: object = None,
    after: object = None,
) -> None:
    audit.record(
        scope,
        action=f"rollout.{act}",
        object_kind="rollout",
        object_name=name,
        reason=reason,
        before=before,
        after=after,
    )
