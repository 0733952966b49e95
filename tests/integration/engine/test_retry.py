"""Denying, and retrying the failed only: named stories on both databases."""

import pytest

from agent.protocol.words import Action, ExecutionState, Reason
from control_plane.domain.errors import ConflictError, IllegalTransitionError, InvalidError
from control_plane.services.rollout_views import RolloutView
from tests.integration.engine.conftest import Fleet

E = ExecutionState
ALL = [{"name": "all", "percent": 100}]
LENIENT = {"max_failures": 4, "min_answered": 0.5}


def _with_failures(fleet: Fleet) -> tuple[str, list[str]]:
    """A rollout that one rolled back in, one failed in, one refused and one fell silent in."""
    name = fleet.start("1.1.0", waves=ALL, gates=LENIENT, timeouts={"silent": "10m"})
    offered = fleet.in_state(name, E.OFFERED)
    fleet.fail(name, offered[0])
    fleet.report(name, offered[1], E.FAILED, reason=Reason.DOWNLOAD_FAILED)
    fleet.report(name, offered[2], E.REJECTED, reason=Reason.BUNDLE_OLDER)
    for device in offered[4:]:
        fleet.succeed(name, device)
    fleet.later(601)
    fleet.tick()
    assert fleet.parts(name)[offered[3]].state == E.TIMED_OUT
    if fleet.view(name).ended_at is None:
        fleet.do("abort", name, reason="good enough")
    return name, offered[:4]


def _devices(fleet: Fleet, view: RolloutView) -> list[str]:
    return sorted(fleet.parts(view.name))


def test_a_denied_wave_ends_the_rollout(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", approval="required")
    assert fleet.view(name).state == "AWAITING_APPROVAL"
    view = fleet.do("deny", name, reason="not before the audit")
    assert (view.state, view.state_reason) == ("ABORTED", "denied by tester: not before the audit")
    assert set(fleet.in_state(name, E.CANCELED)) == set(fleet.parts(name))
    assert "denied by tester: not before the audit" in fleet.explain(name).text()
    newest = [one for one in fleet.decisions(name) if one.kind == "deny"]
    assert [(one.actor, one.reason) for one in newest] == [("tester", "not before the audit")]


def test_denying_the_second_wave_leaves_the_first_as_it_is(lone_fleet: Fleet) -> None:
    waves = [
        {"name": "canary", "count": 3},
        {"name": "rest", "percent": 100, "approval": "required"},
    ]
    name = lone_fleet.start("1.1.0", waves=waves)
    done = lone_fleet.in_state(name, E.OFFERED)
    for device in done:
        lone_fleet.succeed(name, device)
    lone_fleet.tick()
    lone_fleet.do("deny", name, reason="users complain")
    assert lone_fleet.in_state(name, E.SUCCEEDED) == done
    assert all(lone_fleet.order(device).action is Action.RUN for device in done)


@pytest.mark.parametrize("reason", ["", "   "])
def test_a_denial_without_a_reason_is_refused(lone_fleet: Fleet, reason: str) -> None:
    name = lone_fleet.start("1.1.0", approval="required")
    with pytest.raises(InvalidError) as refused:
        lone_fleet.do("deny", name, reason=reason)
    assert refused.value.field == "reason"
    assert lone_fleet.view(name).state == "AWAITING_APPROVAL"


def test_a_retry_is_a_new_rollout_for_those_that_failed(fleet: Fleet) -> None:
    name, (back, failed, rejected, silent) = _with_failures(fleet)
    made = fleet.do("retry", name, reason="the mirror is back")
    assert (made.name, made.state, made.retries) == (f"{name}-retry-1", "DRAFT", name)
    assert _devices(fleet, made) == sorted([back, failed, silent])
    assert rejected not in fleet.parts(made.name)
    policy = {key: value for key, value in made.spec.items() if key != "selector"}
    assert policy == {k: v for k, v in fleet.view(name).spec.items() if k != "selector"}
    fleet.do("start", made.name)
    fleet.finish(made.name)
    assert fleet.view(made.name).state == "SUCCEEDED"
    assert fleet.parts(name)[back].state == "ROLLED_BACK", "a terminal state is never left"


def test_those_that_refused_it_are_retried_only_when_asked_for(lone_fleet: Fleet) -> None:
    name, failed = _with_failures(lone_fleet)
    made = lone_fleet.do("retry", name, include_rejected=True, new_name="again")
    assert (made.name, _devices(lone_fleet, made)) == ("again", sorted(failed))


def test_whoever_runs_it_meanwhile_is_not_retried(lone_fleet: Fleet) -> None:
    name, (back, failed, _, silent) = _with_failures(lone_fleet)
    lone_fleet.succeed(name, silent)  # it woke up, and says that it runs it
    made = lone_fleet.do("retry", name)
    assert _devices(lone_fleet, made) == sorted([back, failed])


def test_a_rollout_that_has_not_ended_is_not_retried(lone_fleet: Fleet) -> None:
    name = lone_fleet.start("1.1.0")
    lone_fleet.fail(name, lone_fleet.in_state(name, E.OFFERED)[0])
    lone_fleet.tick()
    with pytest.raises(IllegalTransitionError, match=r"HALTED.*legal is resume, abort, revert"):
        lone_fleet.do("retry", name)


def test_one_retry_at_a_time_and_each_has_a_number(lone_fleet: Fleet) -> None:
    name, _ = _with_failures(lone_fleet)
    first = lone_fleet.do("retry", name).name
    with pytest.raises(ConflictError, match=f"{first} retries {name} already and is DRAFT"):
        lone_fleet.do("retry", name)
    lone_fleet.do("abort", first)
    assert lone_fleet.do("retry", name).name == f"{name}-retry-2"


def test_a_retry_can_be_retried(lone_fleet: Fleet) -> None:
    name, (back, *_) = _with_failures(lone_fleet)
    first = lone_fleet.do("retry", name).name
    lone_fleet.do("start", first)
    lone_fleet.tick()
    lone_fleet.fail(first, back)
    for device in lone_fleet.in_state(first, E.OFFERED):
        lone_fleet.succeed(first, device)
    lone_fleet.tick()
    if lone_fleet.view(first).ended_at is None:
        lone_fleet.do("abort", first)
    second = lone_fleet.do("retry", first)
    assert (second.name, second.retries) == (f"{name}-retry-2", first)
    assert _devices(lone_fleet, second) == [back]


def test_with_nobody_left_there_is_nothing_to_retry(lone_fleet: Fleet) -> None:
    name = lone_fleet.start("1.1.0")
    lone_fleet.finish(name)
    with pytest.raises(ConflictError, match="nothing to retry"):
        lone_fleet.do("retry", name)


def test_a_retry_that_is_repeated_with_an_old_revision_does_nothing(lone_fleet: Fleet) -> None:
    name, _ = _with_failures(lone_fleet)
    with pytest.raises(ConflictError, match="read it again"):
        lone_fleet.do("retry", name, revision=1)
