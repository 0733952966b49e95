"""The verdict: paired block measurements in, verdict per metric with its evidence out; pure.

What is compared. Candidate and incumbent run in turn (A B B A ...), each block a fresh process
[Georges, Buytaert, Eeckhout: OOPSLA 2007; Kalibera, Jones: ISMM 2013]. A pair of blocks yields one
ratio per metric: the median over its rounds of candidate / incumbent. Single runs of one process
are not independent, so a pair is one observation, never its runs [Chen, Revels: arXiv:1608.04295].

How a timed metric is judged, on the logarithms of the n pair ratios, with Student's t:

- regression: the point ratio is above 1 + tolerance, and the lower confidence bound above 1;
- pass: the upper confidence bound is below 1 + tolerance;
- inconclusive: neither; the trial goes on to its next look, and at last holds. It never rolls back.

The bounds are one-sided, with error `ALPHA_REGRESSION` and `ALPHA_PASS` for the whole trial: each
of its K planned looks spends a K-th of it, so that peeking does not inflate the error (Bonferroni).
A pass needs every metric to pass, which needs no correction (intersection-union test).

Where both models could not be in memory together, the two blocks of a pair are apart in time.
Then the reference kernel's ratio is the covariate of each pair [CUPED: Deng, Xu, Kohavi, Walker,
WSDM 2013]; since its true mean is known (log 1 = 0), the estimate is the intercept of a regression
on it, with its standard error and one degree of freedom less. Runs taken in turn cancel the noise
better than any covariate, and then it is not worth that degree of freedom.

load_ms and memory_mb are judged on the median ratio: one value per process, tails included, under
a generous tolerance. Limits are absolute and judged on the candidate's median, without statistics.
A missing number is never a pass. Overall the worst word wins, in the order of `SEVERITY`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean, median
from typing import NamedTuple

import msgspec

from agent.protocol.manifest import Limits
from agent.protocol.messages import Bench, Metric, TrialPolicy
from agent.protocol.words import Verdict

ALPHA_REGRESSION = 0.002  # dozens of devices, and often a gate with no failure to spare
ALPHA_PASS = 0.05
MIN_PAIRS = 3  # below, a t bound means nothing
LOOK_GROWTH = 1.3  # few looks spend little alpha on each

GOLDEN = "golden_disagreement"
REFERENCE = "reference_ms"
DEFAULT_TOLERANCES = {
    "token_ms": 0.10,
    "first_token_ms": 0.15,
    "memory_mb": 0.20,
    "load_ms": 0.50,
}
METRICS = tuple(DEFAULT_TOLERANCES)
BY_MEDIAN = ("memory_mb", "load_ms")
SEVERITY = (
    Verdict.WRONG_OUTPUT,
    Verdict.OVER_LIMIT,
    Verdict.REGRESSION,
    Verdict.INCONCLUSIVE,
    Verdict.PASS,
)

Blocks = Mapping[str, Sequence[float]]
"""Series name to one value per block: ``candidate.token_ms``, ``incumbent.token_ms``,
``ratio.token_ms`` and so on; ``ratio.reference_ms`` only where the blocks of a pair were apart;
``looks`` is the plan: after how many blocks the trial is judged."""


class Terms(NamedTuple):
    """What a trial is judged by."""

    tolerances: Mapping[str, float | None]
    limits: Mapping[str, float | None]
    disagreement: float
    """Share of golden positions with another most likely token; 1 if a logit is no number."""
    max_disagreement: float
    paired: bool
    """Whether there is an incumbent."""


class Judgement(msgspec.Struct, frozen=True):
    """The verdict of a trial and the evidence for it, metric by metric."""

    verdict: Verdict
    metrics: list[Metric]


class Estimate(NamedTuple):
    """A ratio with its one-sided bounds; n blocks per side."""

    ratio: float
    low: float
    high: float
    n: int


def looks(policy: TrialPolicy) -> list[int]:
    """Return after how many blocks per side the trial is judged."""
    plan = [max(MIN_PAIRS, policy.min_blocks)]
    last = max(plan[0], policy.max_blocks)
    while plan[-1] < last:
        plan.append(min(last, math.ceil(plan[-1] * LOOK_GROWTH)))
    return plan


def terms(
    policy: TrialPolicy,
    limits: Limits,
    *,
    agreement: float,
    min_agreement: float,
    paired: bool,
) -> Terms:
    """Return what a trial is judged by; a tolerance that the policy omits has its default."""
    return Terms(
        tolerances=DEFAULT_TOLERANCES | policy.tolerances,
        limits={name: getattr(limits, name) for name in METRICS},
        disagreement=round(1 - agreement, 9),
        max_disagreement=round(1 - min_agreement, 9),
        paired=paired,
    )


def judge(blocks: Blocks, by: Terms) -> Judgement:
    """Judge what was measured so far."""
    found = [_judge_output(by)]
    found += [metric for name in METRICS if (metric := _judge_metric(name, blocks, by))]
    words = {metric.verdict for metric in found}
    if len(found) <= len(METRICS):
        words.add(Verdict.INCONCLUSIVE)
    return Judgement(next(word for word in SEVERITY if word in words), found)


def replay(bench: Bench) -> Judgement:
    """Recompute a stored trial's verdict from its raw blocks and the terms it was judged by."""
    by_name = {metric.name: metric for metric in bench.metrics}
    output = by_name.pop(GOLDEN, None)
    if output is None or output.limit is None:  # it broke off before the first reading
        return Judgement(Verdict.INCONCLUSIVE, [])
    by = Terms(
        tolerances={name: metric.tolerance for name, metric in by_name.items()},
        limits={name: metric.limit for name, metric in by_name.items()},
        disagreement=output.candidate,
        max_disagreement=output.limit,
        paired=bool(bench.incumbent),
    )
    return judge(bench.blocks, by)


def _judge_output(by: Terms) -> Metric:
    # Written so that a number that is none is wrong, not right.
    agrees = by.disagreement <= by.max_disagreement
    return Metric(
        name=GOLDEN,
        unit="share",
        candidate=by.disagreement,
        limit=by.max_disagreement,
        n=1,
        verdict=Verdict.PASS if agrees else Verdict.WRONG_OUTPUT,
    )


def _judge_metric(name: str, blocks: Blocks, by: Terms) -> Metric | None:
    """Return one metric's evidence; None if the candidate has no number."""
    candidate = _positive(blocks.get(f"candidate.{name}", ()))
    if not candidate:
        return None
    limit = by.limits.get(name)
    plan = [int(n) for n in blocks.get("looks", ())]
    enough = bool(plan) and len(candidate) >= plan[0]
    metric = Metric(
        name=name,
        unit=name.rpartition("_")[2],
        candidate=median(candidate),
        limit=limit,
        n=len(candidate),
        verdict=Verdict.PASS if enough else Verdict.INCONCLUSIVE,
    )
    if by.paired:
        metric = _compare(metric, blocks, plan, by.tolerances.get(name))
    if limit is not None and not metric.candidate <= limit:
        return msgspec.structs.replace(metric, verdict=Verdict.OVER_LIMIT)
    return metric


def _compare(metric: Metric, blocks: Blocks, plan: list[int], tolerance: float | None) -> Metric:
    """Return `metric` with its comparison to the incumbent."""
    incumbent = _positive(blocks.get(f"incumbent.{metric.name}", ()))
    found = estimate(metric.name, blocks, looks=len(plan))
    if found is None or not incumbent or tolerance is None or metric.verdict is not Verdict.PASS:
        return msgspec.structs.replace(metric, tolerance=tolerance, verdict=Verdict.INCONCLUSIVE)
    worst = found.ratio if metric.name in BY_MEDIAN else found.high
    verdict = Verdict.INCONCLUSIVE
    if found.ratio > 1 + tolerance and found.low > 1:
        verdict = Verdict.REGRESSION
    elif worst < 1 + tolerance:
        verdict = Verdict.PASS
    return msgspec.structs.replace(
        metric,
        incumbent=median(incumbent),
        ratio=found.ratio,
        ci_low=found.low,
        ci_high=found.high,
        tolerance=tolerance,
        n=found.n,
        verdict=verdict,
    )


def estimate(name: str, blocks: Blocks, *, looks: int) -> Estimate | None:
    """Return the ratio of one metric; None where a number is missing."""
    ratios = blocks.get(f"ratio.{name}", ())
    n = len(ratios)
    if n < MIN_PAIRS or looks < 1 or len(_positive(ratios)) != n:
        return None
    logs = [math.log(ratio) for ratio in ratios]
    centre, error, freedom = fmean(logs), _standard_error(logs), n - 1
    reference = blocks.get(f"ratio.{REFERENCE}", ())
    if reference and name not in BY_MEDIAN:
        if len(_positive(reference)) != n or n <= MIN_PAIRS:
            return None
        centre, error = _intercept(logs, [math.log(ratio) for ratio in reference])
        freedom = n - 2
    return Estimate(
        ratio=median(ratios) if name in BY_MEDIAN else math.exp(centre),
        low=math.exp(centre - student_t(ALPHA_REGRESSION / looks, freedom) * error),
        high=math.exp(centre + student_t(ALPHA_PASS / looks, freedom) * error),
        n=n,
    )


def _standard_error(values: Sequence[float]) -> float:
    mean = fmean(values)
    return math.sqrt(fmean((value - mean) ** 2 for value in values) / (len(values) - 1))


def _intercept(y: Sequence[float], x: Sequence[float]) -> tuple[float, float]:
    """Return the least-squares estimate of y where x is 0, and its standard error."""
    n, mean_x, mean_y = len(x), fmean(x), fmean(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    if spread == 0:
        return mean_y, _standard_error(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    centre = mean_y - slope * mean_x
    rest = sum((b - centre - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return centre, math.sqrt(rest / (n - 2) * (1 / n + mean_x**2 / spread))


@lru_cache(maxsize=256)  # a plan asks for few, and a replay of many trials for the same again
def student_t(alpha: float, freedom: int) -> float:
    """Return the t that a Student variable exceeds with probability `alpha` (below one half)."""
    return _bisect(lambda t: _t_tail(t, freedom) - alpha, 0.0, 1e6)


def _t_tail(t: float, freedom: int) -> float:
    """Return P(T > t) for t >= 0: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if not odd:
        inside = math.sin(angle) * total
    elif freedom == 1:
        inside = 2 * angle / math.pi
    else:
        inside = 2 / math.pi * (angle + math.sin(angle) * total)
    return (1 - inside) / 2


def _bisect(falling: Callable[[float], float], low: float, high: float) -> float:
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return high


def _positive(values: Sequence[float]) -> list[float]:
    return [value for value in values if value > 0 and math.isfinite(value)]
