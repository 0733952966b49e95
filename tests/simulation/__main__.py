"""``python -m tests.simulation``: many seeds over all cores, or one seed with its whole trace."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from multiprocessing import get_context

from tests.simulation.application import MemoryDatabase
from tests.simulation.many import Done, run_seeds
from tests.simulation.world import World

CHUNK = 10


def _many(first: int, count: int, jobs: int) -> int:
    chunks = [
        range(at, min(at + CHUNK, first + count)) for at in range(first, first + count, CHUNK)
    ]
    began = time.monotonic()
    with get_context("spawn").Pool(jobs) as pool:
        return _collect(pool.imap_unordered(run_seeds, chunks), count, began)


def _collect(results: Iterable[Done], count: int, began: float) -> int:
    done = steps = 0
    hours = 0.0
    counts: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    failures: list[str] = []
    for seeds, more_steps, more_hours, more, ended, failed in results:
        done, steps, hours = done + seeds, steps + more_steps, hours + more_hours
        counts += more
        ends += ended
        for text in failed:
            print(f"\n{text}\n", flush=True)
        failures += failed
        pace = done / (time.monotonic() - began)
        sys.stderr.write(
            f"\r{done:,} of {count:,} seeds, {pace:.1f} a second, {hours:,.0f} simulated hours, "
            f"{len(failures)} violations   "
        )
    sys.stderr.write("\n")
    print(f"seeds             {done:,}")
    print(f"simulated hours   {hours:,.0f}")
    print(f"events            {steps:,}")
    for name, n in sorted(counts.items()):
        print(f"{name:17} {n:,}")
    print(f"rollouts ended    {', '.join(f'{state} {n:,}' for state, n in sorted(ends.items()))}")
    print(f"violations        {len(failures)}")
    return 1 if failures else 0


def _one(seed: int, off: frozenset[str]) -> int:
    outcome = World(seed, MemoryDatabase(), off).run()
    print("\n".join(outcome.trace))
    print(outcome.why or "every invariant holds")
    print(f"trace {outcome.hash}")
    return 1 if outcome.rule else 0


def main() -> int:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seed", type=int, help="only this one, with its trace")
    parser.add_argument("--off", default="", help="faults to leave out, with commas")
    parser.add_argument("--seeds", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    if asked.seed is not None:
        return _one(asked.seed, frozenset(filter(None, asked.off.split(","))))
    return _many(asked.first, asked.seeds, asked.jobs)


if __name__ == "__main__":
    sys.exit(main())
