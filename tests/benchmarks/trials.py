"""How often a trial errs on this machine, against the naive comparison of two means."""

import random

from agent.protocol.messages import TrialPolicy
from agent.protocol.words import Verdict
from tests.benchmarks.row import Row, row
from tests.benchmarks.trial_noise import Pair, collect, drawn, naive, played

PAIRS = 60
TRIALS = 1000
TOLERANCE = 0.10


def rows() -> list[Row]:
    pairs = collect("1.1.0", PAIRS, together=True)
    same = _share(pairs, 1.0, Verdict.REGRESSION)
    caught = _share(pairs, 1.15, Verdict.REGRESSION)
    return [
        row("false_rollback_pct", same[0], "%", "<= 0", same[1]),
        row("slowdown_15pct_caught_pct", caught[0], "%", ">= 99", caught[1]),
    ]


def _share(pairs: list[Pair], slower: float, word: Verdict) -> tuple[float, float]:
    """Return the percentages of trials that end in `word`, ours and the naive rule's."""
    policy = TrialPolicy(tolerances={"token_ms": TOLERANCE})
    draw = random.Random(7)
    ours = theirs = 0
    for _ in range(TRIALS):
        stretch = drawn(pairs, policy.max_blocks, draw)
        ours += played(stretch, slower, policy)[0] is word
        theirs += naive(stretch, slower, policy.min_blocks)
    return 100 * ours / TRIALS, 100 * theirs / TRIALS
