"""The simulation notices each planted bug; what it says is the invariant that the bug breaks."""

import pytest

from tests.simulation.application import MemoryDatabase
from tests.simulation.planted import PLANTED
from tests.simulation.world import World

SEEDS = 100
# Noticed within this many storms; the others are too rare for every run (docs/testing.md).
QUICK = (
    "a_generation_is_used_twice",
    "a_quarantine_is_a_failure",
    "a_replay_counts_again",
    "a_timed_out_device_may_begin",
    "a_trial_is_not_in_flight",
    "a_wave_opens_on_answers_alone",
    "abort_leaves_the_orders",
    "acknowledged_before_the_commit",
    "nobody_answers_a_hello",
    "the_boot_epoch_is_ignored",
    "two_rollouts_at_once",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_caught(memory: MemoryDatabase, name: str) -> None:
    for seed in range(SEEDS):
        with PLANTED[name]():
            found = World(seed, memory, storm=True).run()
        if found.rule:
            break
    else:
        raise AssertionError(f"{name}: nothing noticed it in {SEEDS} seeds")
    assert not found.rule.endswith("Error"), found.why
    assert not World(seed, memory, storm=True).run().rule, f"seed {seed} fails without the bug, too"
