"""Some seeds in one process, and what they add up to; children import this by its name."""

from collections import Counter

from tests.simulation.application import MemoryDatabase
from tests.simulation.shrink import report
from tests.simulation.world import World

Done = tuple[int, int, float, Counter[str], Counter[str], list[str]]
_database: list[MemoryDatabase] = []


def run_seeds(seeds: range) -> Done:
    """Run some seeds in this process; return counts, and a text for each that failed."""
    if not _database:
        _database.append(MemoryDatabase())
    counts: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    steps, hours, failures = 0, 0.0, []
    for seed in seeds:
        outcome = World(seed, _database[0]).run()
        counts += outcome.counts
        ends += outcome.ends
        steps += outcome.steps
        hours += outcome.hours
        if outcome.rule:
            failures.append(report(_database[0], outcome))
    return len(seeds), steps, hours, counts, ends, failures
