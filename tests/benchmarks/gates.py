"""How often the gates err over many devices, at the noise of real trials measured in this run.

Pairs of blocks of one model against itself are measured; a simulated device plays its trial with
a stretch of them, sides swapped by lot, by the agent's own verdict code. What it would report goes
into the sums that the store keeps, and the gates look after every device.

- false_halt: every metric is worse by exactly what is tolerated, the hardest case that is sound;
- false_halt_unchanged: the candidate is the incumbent; devices roll back by their own verdicts;
- missed_regression_15pct: it is 15 % slower, a tenth is tolerated, and no device's own verdict
  counts: do the measurements of up to 20 devices prove it?
- failure_rate_false_halt: as many devices fail as are tolerated, up to 500 of them.

The reference is the same rule with bounds for a fixed number of devices, looked at as often.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from scipy.special import betaincinv, stdtrit

from agent import verdict
from agent.protocol.manifest import Limits
from agent.protocol.messages import Metric, TrialPolicy
from agent.protocol.words import ExecutionState, Verdict
from control_plane.domain import gates
from control_plane.domain.gates import Group, Measured
from control_plane.domain.measured import ENOUGH_FOR_SPREAD, HALT_ERROR
from control_plane.domain.rollout import GatePolicy, RolloutSpec, WaveSpec
from tests.benchmarks.row import Row, row
from tests.benchmarks.trial_noise import Pair, collect, drawn

PAIRS = 40
TRIALS = 800
"""Trials that are played for each case; the simulated devices are drawn from them."""
DEVICES = 20
ROLLOUTS = 10_000
LOTS = 20
"""Of rollouts, each with a seed of its own: the processor's cores share them."""
BETWEEN = 0.02
"""How far the devices of a class differ in the true ratio; assumed: this is one machine."""
ANSWERS = 500
RATE = 0.05
TIMED = ("token_ms", "first_token_ms")
E = ExecutionState

ANY_FAILURES = 10**9
POLICY = GatePolicy(max_failures=ANY_FAILURES)
STRICT = GatePolicy()


@dataclass(frozen=True)
class Device:
    """What one device adds to the tallies, and whether it rolled back."""

    measured: Mapping[str, Measured]
    failed: bool = False


Rule = Callable[[RolloutSpec, Group], bool]


def rows() -> list[Row]:
    pairs = collect("1.1.0", PAIRS, together=True)
    edge = shares(at_the_edge(pairs, BETWEEN), ROLLOUTS, POLICY)
    same = shares(playing(pairs, 1.0, BETWEEN), ROLLOUTS, STRICT)
    caught = shares(playing(pairs, 1.15, BETWEEN), ROLLOUTS // 5, POLICY)
    missed = [round(100 - share, 2) for share in caught]
    rates = [failure_rate(least) for least in (least_proven(), least_naive())]
    return [
        row("false_halt_pct", edge[0], "%", "<= 1", edge[1]),
        row("false_halt_unchanged_pct", same[0], "%", "<= 1", same[1]),
        row("missed_regression_15pct_pct", missed[0], "%", "<= 5", missed[1]),
        row("failure_rate_false_halt_pct", rates[0], "%", "<= 1", rates[1]),
    ]


def playing(pairs: list[Pair], slower: float, between: float) -> list[Device]:
    """Play trials of a candidate that is slower; inconclusive ones add nothing to the sums."""
    policy = TrialPolicy(tolerances=dict(POLICY.tolerance))
    draw = random.Random(7)
    found: list[Device] = []
    while len(found) < TRIALS:
        stretch = drawn(pairs, policy.max_blocks, draw)
        mine = slower * math.exp(draw.gauss(0, between))
        judged = _played(_slowed(stretch, mine), policy)
        if judged.verdict is not Verdict.INCONCLUSIVE:
            failed = judged.verdict is not Verdict.PASS
            found.append(Device(_summary(judged.metrics), failed))
    return found


def at_the_edge(pairs: list[Pair], between: float) -> list[Device]:
    """Measure candidates that are worse by just the tolerance, without any verdict on a device.

    A device's own verdict would send most of them back, and bias the sums of those that stay.
    """
    policy = TrialPolicy(tolerances=dict(POLICY.tolerance))
    draw = random.Random(8)
    found = []
    for _ in range(TRIALS):
        stretch = drawn(pairs, policy.min_blocks, draw)
        judged = _played(stretch, policy)
        shift = draw.gauss(0, between)
        found.append(Device(_shifted(_summary(judged.metrics), shift)))
    return found


def shares(devices: Sequence[Device], rollouts: int, policy: GatePolicy) -> tuple[float, float]:
    """Return the percentages of rollouts that are halted, by the gates and by the naive rule."""
    spec = RolloutSpec("r", "m", "2", (WaveSpec("all", percent=100),), gates=policy)
    return halted(devices, rollouts, spec, proven), halted(devices, rollouts, spec, naive)


def halted(devices: Sequence[Device], rollouts: int, spec: RolloutSpec, rule: Rule) -> float:
    """Return the percentage of rollouts that a rule halts, looking after every device."""
    each = max(1, rollouts // LOTS)
    with ProcessPoolExecutor() as pool:
        lots = [pool.submit(_stopped, devices, each, spec, rule, seed) for seed in range(LOTS)]
        return 100 * sum(lot.result() for lot in lots) / (each * LOTS)


def _stopped(
    devices: Sequence[Device], rollouts: int, spec: RolloutSpec, rule: Rule, seed: int
) -> int:
    draw = random.Random(seed)
    stopped = 0
    for _ in range(rollouts):
        sums: dict[str, Measured] = {}
        failed = 0
        for n in range(1, DEVICES + 1):
            one = draw.choice(devices)
            failed += one.failed
            for name, measured in one.measured.items():
                sums[name] = sums.get(name, Measured()).merged(measured)
            counts = {E.SUCCEEDED: n - failed, E.ROLLED_BACK: failed}
            if rule(spec, Group(0, "x", counts, sums)):
                stopped += 1
                break
    return stopped


def proven(spec: RolloutSpec, group: Group) -> bool:
    """Judge as the rollout machine does."""
    judged = gates.stops(spec, [group], {}, 0)
    return any(gate.verdict is gates.Verdict.BREACH for gate in judged)


def naive(spec: RolloutSpec, group: Group) -> bool:
    """Judge by Student's bound at 99 %, right at one planned look, after every device."""
    if group.failures > spec.gates.max_failures:
        return True
    for name, tolerance in spec.gates.tolerance.items():
        m = group.measured[name]
        if m.n >= ENOUGH_FOR_SPREAD:
            error = len(spec.gates.tolerance)
            quantile = float(stdtrit(m.n - 1, 1 - HALT_ERROR / error))
            variance = max(0.0, m.sum_log2 - m.sum_log**2 / m.n) / (m.n - 1)
            low = m.sum_log / m.n - quantile * math.sqrt(variance / m.n)
            if low > math.log1p(tolerance):
                return True
    return False


def failure_rate(least: Sequence[int]) -> float:
    """Return the percentage of rollouts that reach `least` failures, each with chance `RATE`."""
    draw = random.Random(10)
    stopped = 0
    for _ in range(ROLLOUTS):
        failed = 0
        for needed in least:
            failed += draw.random() < RATE
            if failed >= needed:
                stopped += 1
                break
    return 100 * stopped / ROLLOUTS


def least_proven() -> list[int]:
    """Return, after each answer, from how many failures on the gate halts."""
    limited = GatePolicy(max_failures=ANY_FAILURES, max_failure_rate=RATE)
    spec = RolloutSpec("r", "m", "2", (WaveSpec("all", percent=100),), gates=limited)
    return _least(
        lambda failed, n: proven(
            spec, Group(0, "x", {E.FAILED: failed, E.SUCCEEDED: n - failed}, {})
        )
    )


def least_naive() -> list[int]:
    """The same by Clopper and Pearson's exact bound at 99 %, right at one planned look."""
    return _least(lambda failed, n: bool(betaincinv(failed, n - failed + 1, 0.01) > RATE))


def _least(halts: Callable[[int, int], bool]) -> list[int]:
    least = [1]
    for n in range(1, ANSWERS + 1):
        failed = least[-1]
        while failed <= n and not halts(failed, n):
            failed += 1
        least.append(failed)
    return least[1:]


def _played(stretch: list[Pair], policy: TrialPolicy) -> verdict.Judgement:
    """Look at more and more of the stretch until there is a verdict."""
    by = verdict.terms(policy, Limits(), agreement=1.0, min_agreement=0.9, paired=True)
    plan = verdict.looks(policy)
    found = verdict.Judgement(Verdict.INCONCLUSIVE, [])
    for look in plan:
        blocks = {name: [pair[name] for pair in stretch[:look]] for name in stretch[0]}
        found = verdict.judge({**blocks, "looks": [float(n) for n in plan]}, by)
        if found.verdict is not Verdict.INCONCLUSIVE or look >= len(stretch):
            break
    return found


def _slowed(stretch: list[Pair], slower: float) -> list[Pair]:
    names = {f"{side}.{metric}" for side in ("candidate", "ratio") for metric in TIMED}
    return [{n: slower * v if n in names else v for n, v in pair.items()} for pair in stretch]


def _summary(metrics: Sequence[Metric]) -> dict[str, Measured]:
    """Return what the store adds to its sums."""
    found = {}
    for metric in metrics:
        one = gates.paired(metric.ratio, metric.ci_high)
        if one is not None:
            found[metric.name] = one
    return found


def _shifted(summary: dict[str, Measured], effect: float) -> dict[str, Measured]:
    found = {}
    for name, tolerance in POLICY.tolerance.items():
        one = summary[name]
        log = one.sum_log + effect + math.log1p(tolerance)
        found[name] = Measured(1, log, log * log, one.sum_var)
    return found
