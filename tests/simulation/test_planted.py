"""The simulation notices each planted bug; what it says is the invariant that the bug breaks."""

import pytest

from tests.simulation.application import MemoryDatabase
from tests.simulation.planted import PLANTED
from tests.simulation.planted_policy import POLICY
from tests.simulation.scenario import Lean
from tests.simulation.world import World

SEEDS = 60
STORM, LARGE, SMALL = Lean(storm=True), Lean(large=True), Lean()
BUGS = PLANTED | {bug.__name__: bug for bug in POLICY}
# What a story leans towards, so that the bug has an occasion; the others of BUGS are too rare for
# every run (docs/testing.md).
CAUGHT = {
    "acknowledged_before_the_commit": STORM,
    "a_replay_counts_again": STORM,
    "the_boot_epoch_is_ignored": STORM,
    "a_late_report_reopens": Lean(large=True, policy=("steps", "wave_timeout")),
    "success_as_soon_as_it_runs": SMALL,
    "a_trial_is_not_in_flight": Lean(large=True, policy=("wave_pace",)),
    "pause_withdraws_nothing": Lean(verbs=("pause", "pause")),
    "a_wave_opens_on_answers_alone": LARGE,
    "a_timed_out_device_may_begin": Lean(large=True, policy=("steps", "wave_timeout")),
    "abort_leaves_the_orders": Lean(verbs=("abort",)),
    "a_quarantine_is_a_failure": STORM,
    "a_decision_forgets_its_time": SMALL,
    "a_generation_is_used_twice": STORM,
    "a_revert_names_the_wrong_bundle": Lean(verbs=("revert", "abort_revert")),
    "two_rollouts_at_once": STORM,
    "nobody_answers_a_hello": STORM,
    "the_soak_is_skipped": SMALL,
    "the_switch_is_not_atomic": LARGE,
    "offers_outside_the_window": Lean(large=True, policy=("windows",)),
    "a_device_switches_at_any_hour": Lean(large=True, policy=("windows",)),
    "a_budget_has_room_for_one_more": Lean(large=True, policy=("budgets",)),
    "a_higher_priority_waits": Lean(storm=True, policy=("priority",)),
    "the_pace_grows_at_once": Lean(policy=("growth",)),
    "the_minute_is_forgotten": Lean(policy=("growth",)),
    "an_edit_keeps_the_approvals": Lean(policy=("approval",), verbs=("edit", "approve", "approve")),
    "the_author_may_approve": Lean(policy=("approval",), verbs=("approve", "approve")),
    "one_approval_is_enough": Lean(policy=("approval",), verbs=("approve", "approve")),
    "a_wave_ends_early": Lean(policy=("wave_timeout",)),
    "an_invalid_version_goes_on": Lean(verbs=("invalidate",)),
    "anybody_may_join": Lean(policy=("dynamic",)),
    "a_newcomer_is_passed_over": Lean(policy=("dynamic",)),
    "the_rest_of_a_sweep_is_forgotten": Lean(large=True, verbs=("abort",)),
    "a_tick_offers_after_a_halt": LARGE,
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_planted_bug_is_caught(memory: MemoryDatabase, name: str) -> None:
    for seed in range(SEEDS):
        with BUGS[name]():
            found = World(seed, memory, lean=CAUGHT[name]).run()
        if found.rule:
            break
    else:
        raise AssertionError(f"{name}: nothing noticed it in {SEEDS} seeds")
    assert not found.rule.endswith("Error"), found.why
    sound = World(seed, memory, lean=CAUGHT[name]).run()
    assert not sound.rule, f"seed {seed} fails without the bug, too: {sound.why}"
