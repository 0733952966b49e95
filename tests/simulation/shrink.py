"""From a failing seed to the shortest story that still fails, and how it is told."""

from tests.simulation.application import MemoryDatabase
from tests.simulation.chance import FAULTS
from tests.simulation.world import Outcome, World

LAST_LINES = 80


def shrink(database: MemoryDatabase, failed: Outcome) -> tuple[Outcome, tuple[str, ...]]:
    """Leave out one kind of fault after the other while the same invariant breaks."""
    off: tuple[str, ...] = ()
    shortest = failed
    for fault in FAULTS:
        tried = World(failed.seed, database, frozenset((*off, fault))).run()
        if tried.rule == failed.rule:
            off, shortest = (*off, fault), tried
    return shortest, off


def report(database: MemoryDatabase, failed: Outcome) -> str:
    """Tell of a violation: seed, rule, what it takes, the end of the trace, and how to see it."""
    shortest, off = shrink(database, failed)
    left_out = f" OFF={','.join(off)}" if off else ""
    needed = [fault for fault in FAULTS if fault not in off]
    return "\n".join(
        [
            f"seed {failed.seed}: {failed.rule}",
            f"takes: {', '.join(needed) or 'no fault at all'}",
            *shortest.trace[-LAST_LINES:],
            shortest.why,
            f"replay: make simulate SEED={failed.seed}{left_out}",
        ]
    )
