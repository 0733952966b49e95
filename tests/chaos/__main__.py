"""Kills real processes until told to stop; exit code 1 when a promise was broken."""

import argparse
import sys

from tests.chaos import planted
from tests.chaos.story import PATIENCE_S, Outcome, Wish, live

DATABASES = ("sqlite", "postgresql")


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="in all, over both databases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--db", choices=(*DATABASES, "both"), default="both")
    parser.add_argument("--devices", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=400, help="at most, on each database")
    parser.add_argument("--first", type=int, default=0, help="the number of the first round")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, help="seconds")
    parser.add_argument("--plant", default="", choices=("", *planted.NAMES))
    asked = parser.parse_args()
    databases = DATABASES if asked.db == "both" else (asked.db,)
    broken = False
    for database in databases:
        wish = Wish(
            database,
            seed=asked.seed,
            devices=asked.devices,
            kills=-(-asked.kills // len(databases)),
            rounds=asked.rounds,
            first=asked.first,
            patience_s=asked.patience,
            plant=asked.plant,
        )
        outcome = live(wish, tell)
        summarize(outcome)
        broken = broken or bool(outcome.broken)
    return int(broken)


def summarize(outcome: Outcome) -> None:
    """Print what came of a run."""
    wish = outcome.wish

    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or "none"

    tell(f"{wish.database}: {outcome.killed} kills in {outcome.seconds:.0f} s")
    tell(f"  killed: {listed(outcome.kills)}; stopped for a while: {listed(outcome.frozen)}")
    tell(f"  ended by themselves: {listed(outcome.ended)}")
    tell(
        f"  {outcome.rounds} rounds, {outcome.offers} offers, {outcome.reports} reports counted;"
        f" {outcome.sent} sent, {outcome.replays} of them replays; {outcome.acknowledged} heard"
        f" to be acknowledged; {outcome.looks} looks meanwhile"
    )
    for promise in ("lost", "doubled"):
        n = sum(line.startswith(promise) for line in outcome.broken)
        tell(f"  {promise}: {n}")
    for line in outcome.broken[:20]:
        tell(f"  BROKEN {line}")
    if outcome.broken:
        again = f"DB={wish.database} SEED={wish.seed} KILLS={wish.kills}"
        last = wish.first + outcome.rounds - 1
        tell(f"  again: make chaos {again}; that round alone: ROUND={last} KILLS=40")


def tell(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
