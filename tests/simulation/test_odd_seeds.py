"""The first 1,000 seeds, those with odd numbers: every invariant holds in each."""

import pytest

from tests.simulation.application import MemoryDatabase
from tests.simulation.shrink import report
from tests.simulation.world import World

SEEDS = 1000
EACH = 50


@pytest.mark.parametrize("first", range(1, SEEDS, 2 * EACH))
def test_every_invariant_holds(memory: MemoryDatabase, first: int) -> None:
    for seed in range(first, first + 2 * EACH, 2):
        outcome = World(seed, memory).run()
        assert not outcome.rule, report(memory, outcome)
