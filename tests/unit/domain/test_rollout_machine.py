"""The rollout machine in named stories."""

from collections.abc import Sequence

import pytest

from control_plane.domain.errors import IllegalTransitionError
from control_plane.domain.gates import Group
from control_plane.domain.rollout import (
    Approval,
    BreachScope,
    GatePolicy,
    OnBreach,
    Pace,
    RolloutSpec,
    RolloutState,
    WaveSpec,
)
from control_plane.domain.rollout_machine import advance
from control_plane.domain.rollout_view import (
    Abort,
    Approve,
    AwaitApproval,
    BuildsFailed,
    BuildsReady,
    Decision,
    EndRevert,
    Event,
    GiveWay,
    Halt,
    Hold,
    Machine,
    Offer,
    OpenWave,
    Pause,
    Promote,
    Resume,
    Revert,
    SendBack,
    Start,
    Succeed,
    Tick,
    TimeOut,
    View,
    Withdraw,
)
from tests.unit.domain.rollout_model import E, Part, World, spec

S = RolloutState


def _running(parts: Sequence[Part] = (), **changes: object) -> World:
    world = World(spec(**changes), tuple(parts) or (Part(0, "x"), Part(1, "x")))
    return _after(world, Start(), BuildsReady(), Tick())


def _after(world: World, *events: Event, now: float = 0.0) -> World:
    for event in events:
        world, _ = world.step(event, now)
    return world


def _kinds(decisions: Sequence[Decision]) -> list[type]:
    return [type(decision) for decision in decisions]


def test_a_good_rollout_opens_wave_after_wave_and_succeeds() -> None:
    world, decisions = _running().report(0, E.SUCCEEDED).settle()
    assert _kinds(decisions) == [OpenWave, Offer, Hold]
    world, decisions = world.report(1, E.SUCCEEDED).settle()
    assert _kinds(decisions) == [Succeed]
    assert world.machine.state is S.SUCCEEDED


def test_a_failed_canary_halts_the_rollout() -> None:
    world, decisions = _running().report(0, E.ROLLED_BACK).step(Tick())
    assert _kinds(decisions) == [Halt, Withdraw]
    assert world.machine.state is S.HALTED
    assert "1 ROLLED_BACK" in world.machine.reason
    assert world.settle()[1] == ()


def test_pause_then_a_failure_then_resume_does_not_run_over_the_budget() -> None:
    parts = (Part(0, "x"), Part(0, "x"))
    world = _running(parts).report(0, E.SOAKING)
    world = _after(world, Pause()).report(0, E.ROLLED_BACK)
    world = _after(world, Resume())
    world, decisions = world.settle()
    assert Offer not in _kinds(decisions)
    assert world.machine.state is S.HALTED


def test_resuming_a_halt_needs_a_promotion_where_nobody_confirmed() -> None:
    world = _after(_running().report(0, E.FAILED), Tick(), Resume())
    world, decisions = world.settle()
    assert _kinds(decisions) == [Hold]
    world, decisions = world.step(Promote())
    assert _kinds(decisions) == [OpenWave]


def test_a_wave_does_not_follow_a_canary_that_holds_nobody() -> None:
    world = _running([Part(1, "x")])
    world, decisions = world.step(Tick())
    assert world.machine.wave == 0
    (hold,) = decisions
    assert isinstance(hold, Hold)
    assert "no device has it" in hold.evidence[-1].text
    assert _after(world, Promote()).machine.wave == 1


def test_a_wave_does_not_follow_a_canary_that_was_stopped_whole() -> None:
    policy = GatePolicy(tolerance={"token_ms": 0.1}, scope=BreachScope.BLUEPRINT)
    world = _running([Part(0, "x"), Part(1, "y")], gates=policy).report(0, E.FAILED)
    world, _ = world.settle()
    assert world.machine.halted == {"x"}
    assert world.machine.wave == 0, "y has proven nothing yet"


def test_a_late_failure_of_an_earlier_wave_halts_a_later_one() -> None:
    parts = (Part(0, "x"), Part(0, "x"), Part(1, "x"))
    half = GatePolicy(min_answered=0.5, tolerance={"token_ms": 0.1})
    world = _running(parts, gates=half).report(0, E.SUCCEEDED).report(1, E.SOAKING)
    world, decisions = world.settle()
    assert OpenWave in _kinds(decisions)
    world, decisions = world.report(1, E.ROLLED_BACK).settle()
    assert _kinds(decisions) == [Halt, Withdraw]


def test_one_bad_blueprint_stops_alone_where_the_policy_says_so() -> None:
    policy = GatePolicy(tolerance={"token_ms": 0.1}, scope=BreachScope.BLUEPRINT)
    parts = (Part(0, "x"), Part(0, "y"), Part(1, "x"), Part(1, "y"))
    world = _running(parts, gates=policy).report(0, E.ROLLED_BACK).report(1, E.SUCCEEDED)
    world, decisions = world.settle()
    assert _kinds(decisions)[:3] == [Halt, Withdraw, OpenWave]
    assert world.states() == [E.ROLLED_BACK, E.SUCCEEDED, E.QUEUED, E.OFFERED]
    world, _ = world.report(3, E.SUCCEEDED).settle()
    assert world.machine.state is S.HALTED  # y is done, and a person decides about x
    assert "x: 1 failures" in world.machine.reason
    world = _after(world, Resume())
    assert Offer in _kinds(world.settle()[1])


def test_offers_keep_to_what_may_be_in_flight_and_to_the_minute() -> None:
    parts = tuple(Part(0, "x") for _ in range(9))
    world = World(spec(pace=Pace(max_in_flight=4, per_minute=6)), parts)
    world, first = _after(world, Start(), BuildsReady()).settle(now=1000.0)
    assert [d.n for d in first if isinstance(d, Offer)] == [4]
    for index in range(4):
        world = world.report(index, E.SUCCEEDED)
    world, second = world.settle(now=1010.0)
    assert [d.n for d in second if isinstance(d, Offer)] == [2]
    world, third = world.settle(now=1061.0)
    assert [d.n for d in third if isinstance(d, Offer)] == [2]


def test_a_silent_device_times_out_even_while_paused() -> None:
    world = _running((Part(0, "x"),)).report(0, E.SOAKING).says(0, silent=True)
    world, decisions = _after(world, Pause()).settle(now=5000.0)
    assert decisions[0] == TimeOut(silent_before=4900.0, offered_before=4000.0)
    assert _kinds(decisions)[1:] == [Halt, Withdraw]


def test_a_wave_that_wants_approval_waits_for_it() -> None:
    waves = (WaveSpec("canary", count=1), WaveSpec("rest", percent=100, approval=Approval()))
    world, decisions = _running(waves=waves).report(0, E.SUCCEEDED).settle()
    assert _kinds(decisions) == [AwaitApproval]
    assert world.machine.state is S.AWAITING_APPROVAL
    world, decisions = world.step(Approve())
    assert decisions == (OpenWave(1),)


def test_a_rollout_with_a_date_waits_for_it() -> None:
    world = World(spec(not_before=500.0), (Part(0, "x"),))
    world = _after(world, Start(), BuildsReady(), Tick(), now=100.0)
    assert world.machine.state is S.SCHEDULED
    assert _after(world, Tick(), now=500.0).machine.state is S.RUNNING


def test_builds_that_all_fail_halt_and_resume_asks_again() -> None:
    world = _after(World(spec(), (Part(0, "x"),)), Start(), BuildsFailed("no recipe fits"))
    assert (world.machine.state, world.machine.reason) == (S.HALTED, "no recipe fits")
    assert _after(world, Resume()).machine.state is S.BUILDING


def test_a_breach_reverts_where_the_policy_says_so() -> None:
    world = _running(on_breach=OnBreach.REVERT).report(0, E.ROLLED_BACK)
    world, decisions = world.settle()
    assert _kinds(decisions) == [SendBack, EndRevert]
    assert world.machine.state is S.REVERTED


def test_a_revert_waits_for_devices_but_not_for_ever() -> None:
    world = _after(_running().report(0, E.SUCCEEDED), Revert())
    assert world.settle(now=99.0)[0].machine.state is S.REVERTING
    ended, decisions = world.settle(now=100.0)
    assert decisions == (EndRevert(unreachable=1),)
    assert ended.machine.state is S.REVERTED


def test_a_rollout_whose_devices_were_all_taken_over_gives_way() -> None:
    world = _running().report(0, E.SUCCEEDED)
    world, _ = world.settle()
    world, decisions = world.report(1, E.SUPERSEDED).settle()
    assert _kinds(decisions) == [GiveWay]
    assert world.machine.state is S.ABORTED


def test_whoever_gives_way_leaves_nobody_of_a_halted_blueprint_waiting() -> None:
    groups = (Group(0, "halted", {E.QUEUED: 1}), Group(0, "other", {E.SUPERSEDED: 1}))
    going = Machine(state=S.RUNNING, wave=0, opened_at=(0.0,), halted=frozenset({"halted"}))
    ended, decisions = advance(View(_running().spec, going, groups), Tick(), 0.0)
    assert ended.state is S.ABORTED
    assert decisions == (GiveWay(), Withdraw(for_good=True))


@pytest.mark.parametrize(
    ("world", "event", "words"),
    [
        (World(spec(), (Part(0, "x"),)), Pause(), "a rollout that is DRAFT; legal is start, abort"),
        (_running(), Start(), "cannot start a rollout that is RUNNING"),
        (_running(), Approve(), "cannot approve"),
        (_after(_running(), Abort()), Resume(), "nothing more: it has ended"),
        (_running((Part(0, "x"),), waves=(WaveSpec("all", percent=100),)), Promote(), "last wave"),
        (_running().report(0, E.FAILED), Promote(), "over a failure budget"),
    ],
)
def test_what_a_person_may_not_do_is_refused_with_what_is_legal(
    world: World, event: Event, words: str
) -> None:
    with pytest.raises(IllegalTransitionError, match=words):
        world.step(event)


def test_ticks_and_builds_mean_nothing_where_they_are_not_awaited() -> None:
    for event in (Tick(), BuildsReady(), BuildsFailed("late")):
        draft = World(RolloutSpec("r", "m", "2", (WaveSpec("all", percent=100),)), ())
        assert draft.step(event) == (draft, ())
