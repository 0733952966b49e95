"""Approvals of waves: who gave one, of what, and how many are still needed."""

from control_plane.domain.rollout import RolloutState
from control_plane.services import rollout_codec, rollout_document
from control_plane.services.rollout_inputs import words_of
from control_plane.services.rollout_views import ApprovalView
from control_plane.services.scope import Scope
from control_plane.store import approvals
from control_plane.store.approvals import Given
from control_plane.store.rollouts import RolloutRow


def give(scope: Scope, row: RolloutRow) -> None:
    """Store the actor's approval of the wave that a locked rollout waits with.

    Whether it may be given is the machine's to say, in the same transaction.
    """
    if row.state == RolloutState.AWAITING_APPROVAL:
        given = Given(row.name, _waiting(row), scope.actor, words_of(row))
        approvals.add(scope.tx, scope.now, given)


def of(scope: Scope, row: RolloutRow) -> ApprovalView | None:
    """Return what the waiting wave needs; None: none waits."""
    if row.state != RolloutState.AWAITING_APPROVAL:
        return None
    wave = _waiting(row)
    asked = rollout_document.spec_of(row.name, row.spec).waves[wave].approval
    if asked is None:
        return None
    by = approvals.people(scope.tx, row.name, wave, words_of(row))
    return ApprovalView(wave, asked.needed, list(asked.of), by, max(0, asked.needed - len(by)))


def _waiting(row: RolloutRow) -> int:
    return rollout_codec.read_machine(row.machine).wave + 1
