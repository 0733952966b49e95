"""How often a trial errs on this machine, now: real pairs of one model, resampled.

Run it while the machine is busy: ``python -m tests.benchmarks.trial_noise --pairs 120``. It
measures one model against itself, then plays trials with stretches of these pairs, sides swapped
at random, and slows the candidate by a known factor. ``--save`` and ``--load`` keep the pairs.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import fmean, median

from agent import verdict
from agent.protocol.manifest import Limits
from agent.protocol.messages import TrialPolicy
from agent.protocol.words import Verdict
from agent.trial.pair import CANDIDATE, INCUMBENT, Block, measure
from agent.trial.process import BlockProcess
from agent.trial.readings import BlockRequest, Task
from tests.integration.trial.bundles import example_bundle

Pair = dict[str, float]
SLOWER = (1.0, 1.05, 1.10, 1.15, 1.30, 1.80)
TRIALS = 1000
NAIVE = 1.10


def collect(version: str, pairs: int, *, together: bool) -> list[Pair]:
    """Measure a model against itself."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = example_bundle(version, Path(scratch) / "bundle")
        request = BlockRequest(task=Task.MEASURE, folder=str(folder))
        sides = {CANDIDATE: request, INCUMBENT: request}
        found = []
        for index in range(pairs):
            flip = index % 2 == 1
            found.append(measure(sides, _start, together=together, flip=flip))
            sys.stderr.write(f"\r{index + 1}/{pairs} pairs")
        sys.stderr.write("\n")
        return found


def _start(request: BlockRequest) -> Block:
    return BlockProcess(request, time.monotonic() + 120)


def played(stretch: list[Pair], slower: float, policy: TrialPolicy) -> tuple[Verdict, int]:
    """Play a trial: look at more and more of the stretch until there is a verdict."""
    by = verdict.terms(policy, Limits(), agreement=1.0, min_agreement=0.9, paired=True)
    plan = verdict.looks(policy)
    found = Verdict.INCONCLUSIVE
    look = 0
    for look in plan:
        blocks = {name: [pair[name] for pair in stretch[:look]] for name in stretch[0]}
        for name in ("token_ms", "first_token_ms"):
            for side in ("candidate", "ratio"):
                blocks[f"{side}.{name}"] = [slower * v for v in blocks[f"{side}.{name}"]]
        found = verdict.judge({**blocks, "looks": [float(n) for n in plan]}, by).verdict
        if found is not Verdict.INCONCLUSIVE:
            break
    return found, look


def naive(stretch: list[Pair], slower: float, blocks: int) -> bool:
    """Compare means, as one would without thinking: is the candidate slower by a tenth?"""
    mine = fmean(pair["candidate.token_ms"] for pair in stretch[:blocks]) * slower
    return mine / fmean(pair["incumbent.token_ms"] for pair in stretch[:blocks]) > NAIVE


def drawn(pairs: list[Pair], length: int, draw: random.Random) -> list[Pair]:
    """Draw a stretch of successive pairs, as noise comes in spells, with sides swapped by lot."""
    first = draw.randrange(len(pairs))
    stretch = [pairs[(first + index) % len(pairs)] for index in range(length)]
    return [_swapped(pair) if draw.random() < 0.5 else pair for pair in stretch]


def _swapped(pair: Pair) -> Pair:
    other = {CANDIDATE: INCUMBENT, INCUMBENT: CANDIDATE}
    found = {}
    for name, value in pair.items():
        side, _, metric = name.partition(".")
        found[f"{other.get(side, side)}.{metric}"] = 1 / value if side == "ratio" else value
    return found


def table(pairs: list[Pair], tolerance: float) -> None:
    policy = TrialPolicy(tolerances={"token_ms": tolerance})
    draw = random.Random(7)
    print(f"\ntolerance {tolerance:.0%}: of {TRIALS} trials, in percent")
    print("slower    pass  regression  inconclusive  blocks (median)  naive rule says slower")
    for slower in SLOWER:
        words: Counter[Verdict] = Counter()
        blocks, wrong = [], 0
        for _ in range(TRIALS):
            stretch = drawn(pairs, policy.max_blocks, draw)
            word, used = played(stretch, slower, policy)
            words[word] += 1
            blocks.append(used)
            wrong += naive(stretch, slower, policy.min_blocks)
        share = [100 * words[word] / TRIALS for word in _WORDS]
        print(
            f"{slower:5.2f}x  {share[0]:6.1f}  {share[1]:10.1f}  {share[2]:12.1f}"
            f"  {median(blocks):15.0f}  {100 * wrong / TRIALS:22.1f}"
        )


_WORDS = (Verdict.PASS, Verdict.REGRESSION, Verdict.INCONCLUSIVE)


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--version", default="1.0.0")
    ask.add_argument("--pairs", type=int, default=60)
    ask.add_argument("--apart", action="store_true", help="as where memory holds only one model")
    ask.add_argument("--load", type=Path)
    ask.add_argument("--save", type=Path)
    given = ask.parse_args()
    pairs: list[Pair]
    if given.load:
        pairs = json.loads(given.load.read_text())
    else:
        pairs = collect(given.version, given.pairs, together=not given.apart)
    if given.save:
        given.save.write_text(json.dumps(pairs))
    for name in ("token_ms", "first_token_ms", "load_ms"):
        ratios = [pair[f"ratio.{name}"] for pair in pairs]
        print(f"{name}: ratio of one model to itself, {min(ratios):.3f} to {max(ratios):.3f}")
    for tolerance in (0.05, 0.10, 0.15):
        table(pairs, tolerance)
    return 0


if __name__ == "__main__":
    sys.exit(main())
