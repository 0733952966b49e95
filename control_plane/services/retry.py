"""Retrying the failed only: a new rollout with the same policy, for the devices that need it."""

import re
from dataclasses import replace

from agent.protocol.words import ExecutionState
from control_plane.domain.errors import ConflictError, IllegalTransitionError
from control_plane.domain.rollout import ENDED, FAILURES, RolloutSpec, RolloutState
from control_plane.domain.rollout_verbs import legal
from control_plane.services import rollout_document
from control_plane.services.scope import Scope
from control_plane.store import rollouts as store
from control_plane.store.rollouts import RolloutRow

MAX_NAME = 63
_RETRY = re.compile(r"-retry-[0-9]+$")


def spec_for(
    scope: Scope, row: RolloutRow, new_name: str, *, include_rejected: bool
) -> RolloutSpec:
    """Return the rollout that retries an ended one.

    A part that has ended is never opened again, so a retry is a rollout of its own. Its selector
    names whoever failed in the old one and does not run the version meanwhile.

    Raises:
        IllegalTransitionError: the old one has not ended: its failures still decide over it.
        ConflictError: another retry of it has not ended.
    """
    if row.state not in ENDED:
        may = ", ".join(legal(RolloutState(row.state)))
        raise IllegalTransitionError(
            f"cannot retry a rollout that is {row.state}: its failures still decide over it, and "
            f"some of its devices may yet answer; legal is {may}; retry it once it has ended"
        )
    for other, state in store.retries_of(scope.tx, row.name):
        if state not in ENDED:
            raise ConflictError(f"{other} retries {row.name} already and is {state}")
    return replace(
        rollout_document.spec_of(row.name, row.spec),
        name=new_name or _free_name(scope, row.name),
        selector=selector(row, include_rejected=include_rejected),
        not_before=None,
        dynamic=False,
    )


def selector(row: RolloutRow, *, include_rejected: bool) -> str:
    """Return the selector of whoever failed and does not run the version now."""
    states = FAILURES | ({ExecutionState.REJECTED} if include_rejected else frozenset())
    named = ", ".join(f'"{state}"' for state in sorted(states))
    return (
        f"rollouts.{row.name} in ({named})"
        f' and not (model = "{row.model}" and version = "{row.version}")'
    )


def _free_name(scope: Scope, name: str) -> str:
    base = _RETRY.sub("", name)
    number = 1
    while True:
        ending = f"-retry-{number}"
        candidate = f"{base[: MAX_NAME - len(ending)]}{ending}"
        if store.find(scope.tx, candidate) is None:
            return candidate
        number += 1
