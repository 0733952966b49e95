"""What happens to a device, told story by story."""

import msgspec
import pytest

from agent.errors import IllegalTransitionError
from agent.lifecycle import (
    Activating,
    Benchmarking,
    BundleStaged,
    Download,
    Downloading,
    Holding,
    Idle,
    OperatorRollback,
    OrderRefused,
    Report,
    ReportState,
    Reverting,
    RunTrial,
    Soaking,
    Verifying,
)
from agent.machine import step
from agent.protocol.words import Action, ExecutionState, Reason, Verdict
from tests.unit.agent.story import NEW, NOW, OLD, World, bundle, order, ordered, standing, started

S = ExecutionState


def confirmed(what: World) -> None:
    what.take(ordered())
    what.settle()
    assert what.end == (S.SUCCEEDED, Reason.SOAKED)


def test_a_good_update_goes_through_every_state_and_is_confirmed() -> None:
    world = World()
    confirmed(world)
    assert [report.state for report in world.reports] == [
        S.DOWNLOADING,
        S.STAGED,
        S.BENCHMARKING,
        S.ACTIVATING,
        S.SOAKING,
        S.SUCCEEDED,
    ]
    assert world.link == NEW.digest
    assert world.state.standing.good == NEW
    assert world.state.standing.previous == OLD
    assert world.state.standing.floors == {"slm": 2}


def test_success_is_reported_with_the_digest_that_runs() -> None:
    world = World()
    confirmed(world)
    assert world.reports[-1].digest == NEW.digest


def test_the_floor_does_not_rise_before_the_confirm() -> None:
    world = World()
    world.take(ordered())
    world.until(Soaking)
    assert world.state.standing.floors == {"slm": 1}


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (Verdict.REGRESSION, Reason.TRIAL_REGRESSION),
        (Verdict.WRONG_OUTPUT, Reason.TRIAL_WRONG_OUTPUT),
        (Verdict.OVER_LIMIT, Reason.TRIAL_OVER_LIMIT),
    ],
)
def test_a_worse_model_is_never_activated(verdict: Verdict, reason: Reason) -> None:
    world = World(verdict=verdict)
    world.take(ordered())
    world.settle()
    assert world.end == (S.ROLLED_BACK, reason)
    assert world.link == OLD.digest
    assert S.ACTIVATING not in {report.state for report in world.reports}
    assert world.slots == {OLD.digest}


def test_a_crashing_candidate_is_rolled_back() -> None:
    world = World(fails={"RunTrial": Reason.TRIAL_CRASHED})
    world.take(ordered())
    world.settle()
    assert world.end == (S.ROLLED_BACK, Reason.TRIAL_CRASHED)


def test_an_inconclusive_trial_waits_and_is_repeated_and_never_rolls_back() -> None:
    world = World(verdict=Verdict.INCONCLUSIVE)
    world.take(ordered())
    world.until(Holding)
    assert world.end == (S.BENCHMARKING, Reason.TRIAL_INCONCLUSIVE)
    world.verdict = Verdict.PASS
    world.settle()
    assert world.end == (S.SUCCEEDED, Reason.SOAKED)


def test_the_first_model_of_a_device_has_no_incumbent() -> None:
    world = World(state=Idle(standing=standing(None)), link="", slots=set())
    world.take(ordered())
    world.until(Benchmarking)
    trial = world.pending[0]
    assert isinstance(trial, RunTrial)
    assert trial.incumbent == ""
    world.settle()
    assert world.end == (S.SUCCEEDED, Reason.SOAKED)


def test_an_unhealthy_soak_goes_back_to_last_known_good() -> None:
    world = World(healthy=False)
    world.take(ordered())
    world.settle()
    assert world.end == (S.ROLLED_BACK, Reason.SOAK_UNHEALTHY)
    assert world.link == OLD.digest
    assert world.reports[-1].digest == OLD.digest
    assert world.state.standing.floors == {"slm": 1}


def test_an_unhealthy_first_model_leaves_none_active() -> None:
    world = World(state=Idle(standing=standing(None)), link="", slots=set(), healthy=False)
    world.take(ordered())
    world.settle()
    assert world.end == (S.ROLLED_BACK, Reason.SOAK_UNHEALTHY)
    assert world.link == ""


def test_the_soak_lasts_as_long_as_ordered() -> None:
    world = World()
    world.take(ordered(soak_s=200))
    world.until(Soaking)
    world.settle()
    assert world.now.steady - NOW.steady >= 200


def test_an_order_already_followed_is_only_answered_with_the_state() -> None:
    world = World()
    confirmed(world)
    after, effects = step(world.state, ordered(), NOW)
    assert after == world.state
    assert effects == (ReportState(),)


def test_the_same_order_again_while_it_is_under_way_changes_nothing() -> None:
    world = World()
    world.take(ordered())
    world.until(Downloading)
    after, effects = step(world.state, ordered(), NOW)
    assert after == world.state
    assert effects == (ReportState(),)


def test_a_bundle_that_runs_already_succeeds_at_once() -> None:
    world = World()
    world.take(ordered(1, OLD))
    assert world.end == (S.SUCCEEDED, Reason.ALREADY_RUNNING)
    assert world.reports[-1].digest == OLD.digest
    assert not world.pending


def test_a_newer_order_takes_over_before_activation() -> None:
    world = World()
    world.take(ordered(1))
    world.until(Downloading)
    third = bundle("3.0.0", 3)
    world.take(ordered(2, third))
    assert world.end == (S.SUPERSEDED, Reason.SUPERSEDED)
    world.settle()
    assert world.end == (S.SUCCEEDED, Reason.SOAKED)
    assert world.link == third.digest


def test_a_newer_order_waits_for_the_end_of_a_soak() -> None:
    world = World()
    world.take(ordered(1))
    world.until(Soaking)
    third = bundle("3.0.0", 3)
    world.take(ordered(2, third))
    assert isinstance(world.state, Soaking)
    world.settle()
    ends = [(r.execution, r.state) for r in world.reports if r.state is S.SUCCEEDED]
    assert ends == [("x1", S.SUCCEEDED), ("x2", S.SUCCEEDED)]
    assert world.state.standing.previous == NEW


def test_only_the_newest_waiting_order_is_begun() -> None:
    world = World()
    world.take(ordered(1))
    world.until(Soaking)
    world.take(ordered(2, bundle("3.0.0", 3)))
    world.take(ordered(3, bundle("4.0.0", 4)))
    assert (world.reports[-1].execution, world.end) == ("x2", (S.SUPERSEDED, Reason.SUPERSEDED))
    world.settle()
    assert world.state.standing.good == bundle("4.0.0", 4)


@pytest.mark.parametrize("where", [Verifying, Downloading, Benchmarking])
def test_a_hold_cancels_what_has_not_been_activated(where: type) -> None:
    world = World()
    world.take(ordered(1))
    world.until(where)
    world.take(ordered(2, None, action=Action.HOLD, execution="x1"))
    assert isinstance(world.state, Idle)
    assert (world.reports[-1].execution, world.end) == ("x1", (S.CANCELED, Reason.WITHDRAWN))
    assert sum(report.state is S.CANCELED for report in world.reports) == 1
    assert world.state.standing.generation == 2
    assert world.slots == {OLD.digest}


def test_a_hold_does_not_stop_a_soak() -> None:
    world = World()
    world.take(ordered(1))
    world.until(Soaking)
    world.take(ordered(2, None, action=Action.HOLD, execution="x1"))
    world.settle()
    assert world.end == (S.SUCCEEDED, Reason.SOAKED)
    assert world.state.standing.generation == 2


def test_a_hold_for_an_offer_that_never_arrived_is_answered() -> None:
    world = World()
    world.take(ordered(5, None, action=Action.HOLD, execution="missed"))
    assert (world.reports[-1].execution, world.end) == ("missed", (S.CANCELED, Reason.WITHDRAWN))


def test_a_revert_to_the_spare_slot_needs_no_trial() -> None:
    world = World()
    confirmed(world)
    world.take(ordered(2, OLD, action=Action.REVERT))
    world.settle()
    assert world.end == (S.ROLLED_BACK, Reason.REVERTED)
    assert world.reports[-1].execution == "x2"
    assert world.link == OLD.digest
    assert world.state.standing.good == OLD
    assert S.BENCHMARKING not in {r.state for r in world.reports if r.execution == "x2"}


def test_a_revert_does_not_lower_the_floor() -> None:
    world = World()
    confirmed(world)
    world.take(ordered(2, OLD, action=Action.REVERT))
    world.settle()
    assert world.state.standing.floors == {"slm": 2}


def test_a_revert_ends_a_soak_at_once() -> None:
    world = World()
    world.take(ordered(1))
    world.until(Soaking)
    world.take(ordered(2, OLD, action=Action.REVERT))
    assert isinstance(world.state, Reverting)
    world.settle()
    ends = [(r.execution, r.state) for r in world.reports[-2:]]
    assert ends == [("x1", S.SUPERSEDED), ("x2", S.ROLLED_BACK)]
    assert world.link == OLD.digest


def test_a_revert_of_the_execution_that_soaks_is_its_one_end() -> None:
    world = World()
    world.take(ordered(1))
    world.until(Soaking)
    told = len(world.reports)
    world.take(ordered(2, OLD, action=Action.REVERT, execution="x1"))
    world.settle()
    assert [(r.execution, r.generation, r.state, r.reason) for r in world.reports[told:]] == [
        ("x1", 2, S.ROLLED_BACK, Reason.REVERTED)
    ]
    assert world.link == OLD.digest


def test_an_execution_that_was_withdrawn_can_be_offered_again() -> None:
    world = World()
    world.take(ordered(1))
    world.until(Downloading)
    world.take(ordered(2, None, action=Action.HOLD, execution="x1"))
    assert world.end == (S.CANCELED, Reason.WITHDRAWN)
    world.reports.clear()
    world.take(ordered(3, execution="x1"))
    world.settle()
    assert world.end == (S.SUCCEEDED, Reason.SOAKED)


def test_a_revert_that_comes_during_activation_follows_it() -> None:
    world = World()
    world.take(ordered(1))
    world.until(Activating)
    world.take(ordered(2, OLD, action=Action.REVERT))
    world.settle()
    assert [(r.execution, r.state) for r in world.reports[-2:]] == [
        ("x1", S.SUPERSEDED),
        ("x2", S.ROLLED_BACK),
    ]
    assert world.link == OLD.digest


def test_an_order_for_another_device_is_refused_and_changes_nothing() -> None:
    world = World()
    world.take(ordered(7, device="edge-2"))
    assert world.end == (S.REJECTED, Reason.ORDER_DEVICE)
    assert world.state.standing.generation == 0


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (ordered(1, expires=1), Reason.ORDER_EXPIRED),
        (ordered(1, None), Reason.ORDER_MALFORMED),
        (ordered(1, bundle("0.9.0", 0)), Reason.BUNDLE_OLDER),
    ],
)
def test_an_order_that_may_not_be_followed_is_rejected_with_its_reason(
    wrong: object, reason: Reason
) -> None:
    world = World()
    world.take(wrong)  # type: ignore[arg-type]  # an Ordered
    assert world.end == (S.REJECTED, reason)
    assert world.state.standing.generation == 1
    assert world.link == OLD.digest


def test_an_older_release_of_another_model_is_not_a_downgrade() -> None:
    world = World()
    world.take(ordered(1, bundle("0.1.0", 0, model="other")))
    assert isinstance(world.state, Verifying)


def test_a_forged_envelope_is_refused_once_and_disturbs_nothing() -> None:
    world = World()
    world.take(ordered(1))
    world.until(Downloading)
    forged = OrderRefused(envelope="f", reason=Reason.ORDER_SIGNATURE, execution="x9")
    world.take(forged)
    assert world.end == (S.REJECTED, Reason.ORDER_SIGNATURE)
    told = len(world.reports)
    world.take(forged)
    assert len(world.reports) == told
    world.settle()
    assert world.end == (S.SUCCEEDED, Reason.SOAKED)


def test_an_answer_of_a_superseded_step_is_ignored() -> None:
    world = World()
    world.take(ordered(1))
    world.until(Downloading)
    world.take(ordered(2, bundle("3.0.0", 3)))
    before = world.state
    world.take(BundleStaged(generation=1))
    assert world.state == before


def test_an_answer_that_fits_no_state_is_a_defect() -> None:
    state = Verifying(standing=standing(), order=order())
    with pytest.raises(IllegalTransitionError, match="BundleStaged in Verifying"):
        step(state, BundleStaged(generation=1), NOW)


def test_a_person_goes_back_to_the_bundle_before() -> None:
    world = World()
    confirmed(world)
    world.state, effects = step(world.state, OperatorRollback(), NOW)
    world.pending = [effects[0]]
    world.carry_out()
    assert world.link == OLD.digest
    assert isinstance(world.state, Idle)
    assert world.state.standing.good == OLD


def test_a_person_cannot_go_back_from_nothing() -> None:
    world = World()
    after, effects = step(world.state, OperatorRollback(), NOW)
    assert after == world.state
    assert effects == (ReportState(),)


def test_a_device_that_crashes_the_machine_in_every_soak_goes_back() -> None:
    world = World()
    world.take(ordered(1))
    world.until(Soaking)
    for _ in range(3):
        world.kill()
    world.settle()
    assert world.end == (S.ROLLED_BACK, Reason.CRASH_LOOP)
    assert world.link == OLD.digest


def test_a_trial_that_takes_the_machine_down_every_time_is_given_up() -> None:
    world = World()
    world.take(ordered(1))
    world.until(Benchmarking)
    for _ in range(3):
        world.kill()
    assert world.end == (S.ROLLED_BACK, Reason.CRASH_LOOP)


def test_a_rotten_active_bundle_falls_back_to_the_one_before_and_asks_again() -> None:
    world = World()
    confirmed(world)
    world.slots.discard(NEW.digest)
    world.link = NEW.digest
    world.pending = []
    world.state, effects = step(world.state, started(NEW.digest, {OLD.digest}), NOW)
    assert world.state.standing.good == OLD
    assert world.state.standing.generation == 0, "behind, so that the order is sent again"
    assert any(getattr(effect, "digest", "") == OLD.digest for effect in effects)


def test_a_revert_to_a_bundle_that_is_gone_fetches_it_again() -> None:
    world = World()
    confirmed(world)
    world.take(ordered(2, bundle("0.5.0", 0), action=Action.REVERT))
    world.until(Downloading)
    assert isinstance(world.pending[0], Download)
    world.settle()
    assert world.end == (S.ROLLED_BACK, Reason.REVERTED)


def test_every_report_names_what_runs() -> None:
    world = World()
    confirmed(world)
    before = [r.digest for r in world.reports if r.state not in {S.SOAKING, S.SUCCEEDED}]
    assert set(before) == {OLD.digest}
    assert all(isinstance(report, Report) for report in world.reports)


def test_a_revert_that_came_too_late_is_followed_once_it_is_renewed() -> None:
    world = World()
    confirmed(world)
    late = ordered(2, OLD, action=Action.REVERT, expires=1)
    world.take(late)
    assert world.end == (S.REJECTED, Reason.ORDER_EXPIRED)
    assert world.link == NEW.digest
    world.take(msgspec.structs.replace(ordered(2, OLD, action=Action.REVERT), envelope="renewed"))
    world.settle()
    assert world.end == (S.ROLLED_BACK, Reason.REVERTED)
    assert world.link == OLD.digest


def test_a_revert_that_came_too_late_does_not_end_a_soak() -> None:
    world = World()
    world.take(ordered())
    world.until(Soaking)
    world.take(ordered(2, OLD, action=Action.REVERT, expires=1))
    assert isinstance(world.state, Soaking)
    world.settle()
    assert world.link == NEW.digest
