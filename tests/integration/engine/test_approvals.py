"""Who may open a wave, how many of them it takes, and what makes their word void."""

from typing import Any

import pytest
from sqlalchemy import update

from agent.protocol.words import ExecutionState
from control_plane.domain.errors import ForbiddenError, IllegalTransitionError
from control_plane.store import rollouts as store
from control_plane.store import schema
from tests.integration.engine.conftest import Fleet

E = ExecutionState
ALL = [{"name": "all", "percent": 100}]


def _asking(fleet: Fleet, **approval: Any) -> str:
    return fleet.start("1.1.0", waves=[{**ALL[0], "approval": approval}])


def test_as_many_people_as_are_needed_open_a_wave(fleet: Fleet) -> None:
    name = _asking(fleet, needed=2, of=["ann", "bob", "tester"])
    twice = [fleet.do_as("ann", "approve", name) for _ in range(2)]  # the same person counts once
    assert [view.state for view in twice] == ["AWAITING_APPROVAL"] * 2
    assert [view.approval and view.approval.left for view in twice] == [1, 1]
    view = fleet.view(name)
    assert view.approval is not None
    assert (view.approval.by, view.approval.of) == (["ann"], ["ann", "bob", "tester"])
    assert fleet.tick().offered == 0
    view = fleet.do_as("bob", "approve", name)
    assert (view.state, view.approval) == ("RUNNING", None)
    assert fleet.tick().offered > 0
    fleet.check_replay(name)


def test_whoever_wrote_it_or_is_not_asked_may_not_approve(fleet: Fleet) -> None:
    name = _asking(fleet, needed=1, of=["ann", "tester"])
    with pytest.raises(ForbiddenError, match="tester wrote this rollout"):
        fleet.do("approve", name)
    with pytest.raises(ForbiddenError, match="eve may not approve this wave; these may: ann"):
        fleet.do_as("eve", "approve", name)
    view = fleet.view(name)
    assert view.approval is not None
    assert (view.approval.by, view.approval.left) == ([], 1)


def test_whoever_changed_a_draft_wrote_it_too(fleet: Fleet) -> None:
    name = fleet.create("1.1.0", waves=[{**ALL[0], "approval": "required"}])
    with fleet.scope() as scope:  # as a change by bob leaves it
        scope.tx.execute(update(schema.rollout).values(edited_by="bob"))
    fleet.do("start", name)
    with pytest.raises(ForbiddenError, match="bob wrote"):
        fleet.do_as("bob", "approve", name)
    assert fleet.do_as("ann", "approve", name).state == "RUNNING"


def test_an_edit_voids_the_approvals_of_what_was_there_before(fleet: Fleet) -> None:
    name = _asking(fleet, needed=2)
    fleet.do_as("ann", "approve", name)
    with fleet.scope() as scope:
        spec = store.find(scope.tx, name)
        assert spec is not None
        changed = {**spec.spec, "soak": "1s"}
        store.save(scope.tx, name, spec=changed)
    view = fleet.do_as("bob", "approve", name)
    assert view.approval is not None
    assert (view.state, view.approval.by) == ("AWAITING_APPROVAL", ["bob"])


def test_an_approval_outlives_a_pause_and_is_of_one_wave_only(fleet: Fleet) -> None:
    asked = {"approval": {"needed": 2}}
    name = fleet.start("1.1.0", waves=[{"name": "c", "count": 1, **asked}, {**ALL[0], **asked}])
    fleet.do_as("ann", "approve", name)
    fleet.do("pause", name)
    with pytest.raises(IllegalTransitionError):
        fleet.do_as("bob", "approve", name)
    fleet.do("resume", name)
    fleet.do_as("bob", "approve", name)
    fleet.tick()
    fleet.succeed(name, fleet.in_state(name, E.OFFERED)[0])
    fleet.tick()
    view = fleet.view(name)
    assert view.approval is not None
    assert (view.state, view.approval.wave, view.approval.left) == ("AWAITING_APPROVAL", 1, 2)
