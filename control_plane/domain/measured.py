"""Measurements of devices as sums that merge, and what may be concluded from them; pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.protocol.words import Reason
from control_plane.domain import sequential

HALT_ERROR = 0.01
"""How often a sound rollout may be halted by a bound, over all its gates and looks together."""
PASS_ERROR = 0.05
"""How often an upper bound may be too low, over all looks; a wave needs every metric's."""
Z = 1.6448536269514722
"""One-sided 95 %: how many standard errors a device's interval is taken to reach."""
ENOUGH_FOR_SPREAD = 5
"""Devices from which they speak for their class; fewer speak for themselves."""

METRICS = frozenset({"token_ms", "first_token_ms", "memory_mb", "load_ms"})
BY_RATIO = frozenset({"memory_mb", "load_ms"})
"""One value a process, tails included: few devices are judged on the ratio, as each does itself."""

GOLDEN = "golden_disagreement"
"""The share of golden prompts' tokens that come out otherwise; exact, so no device has an error."""

TRIALS = "trial"
FIRST_TRIALS = "trial.first"
ALREADY_RUNNING = Reason.ALREADY_RUNNING.value
"""Rows kept beside the metrics: trials that count, those without an incumbent, none needed."""


@dataclass(frozen=True)
class Measured:
    """A mergeable summary of one metric's paired log-ratios, one a device.

    Of the golden prompts it sums the shares themselves, and in `sum_var` their limits.
    """

    n: int = 0
    sum_log: float = 0.0
    sum_log2: float = 0.0
    sum_var: float = 0.0
    regressed: int = 0

    def merged(self, other: "Measured") -> "Measured":
        return Measured(
            self.n + other.n,
            self.sum_log + other.sum_log,
            self.sum_log2 + other.sum_log2,
            self.sum_var + other.sum_var,
            self.regressed + other.regressed,
        )

    def since(self, before: "Measured") -> "Measured":
        """Return what came after `before` was summed."""
        return Measured(
            self.n - before.n,
            self.sum_log - before.sum_log,
            self.sum_log2 - before.sum_log2,
            self.sum_var - before.sum_var,
            self.regressed - before.regressed,
        )


@dataclass(frozen=True)
class Seen:
    """What a person had seen of a blueprint when resuming: only what came since may halt."""

    tried: int = 0
    measured: Mapping[str, Measured] = field(default_factory=dict)


def interval(measured: Measured, halt_error: float = HALT_ERROR) -> tuple[float, float, float]:
    """Return the mean ratio and the bounds that may be looked at after every device.

    The lower bound, on which a gate halts, errs at most with `halt_error`; the upper, on which
    it passes, with `PASS_ERROR`. From five devices on they speak for the class: the devices'
    spread decides, whatever its causes (`sequential.mean`).

    Fewer speak for themselves, by their own intervals: the reach is one device's, the root mean
    square of theirs, and never shrinks. A mean of n errs by sqrt(n) times that reach with
    probability 5, 1, 0.2 and 0.05 % for n of 1 to 4: together 6.3 %, most of it the first
    device's own error. Such a lower bound never halts.
    """
    n = measured.n
    mean = measured.sum_log / n
    if n < ENOUGH_FOR_SPREAD:
        reach = Z * math.sqrt(max(0.0, measured.sum_var) / n)
        return _ratio(mean), _ratio(mean - reach), _ratio(mean + reach)
    low = sequential.mean(n, measured.sum_log, measured.sum_log2, halt_error).low
    high = sequential.mean(n, measured.sum_log, measured.sum_log2, PASS_ERROR).high
    return _ratio(mean), _ratio(low), _ratio(high)


def paired(ratio: float | None, ci_high: float | None) -> Measured | None:
    """Return one device's measurement as a summary; None if a number is missing or impossible."""
    if ratio is None or ci_high is None:
        return None
    if not (0 < ratio < math.inf and 0 < ci_high < math.inf):
        return None
    log = math.log(ratio)
    error = max(0.0, math.log(ci_high) - log) / Z
    return Measured(1, log, log * log, error * error)


def disagreed(share: float | None, limit: float | None) -> Measured | None:
    """Return how far one device's outputs differ; None if a number is missing or impossible."""
    if share is None or limit is None or not (0 <= share <= 1 and 0 <= limit <= 1):
        return None
    return Measured(1, share, share * share, limit)


def disagreement(measured: Measured) -> tuple[float, float, float]:
    """Return the mean share, its upper bound and its limit; few devices bound nothing else."""
    n = measured.n
    mean = measured.sum_log / n
    high = mean
    if n >= ENOUGH_FOR_SPREAD:
        high = min(1.0, sequential.mean(n, measured.sum_log, measured.sum_log2, PASS_ERROR).high)
    return mean, high, measured.sum_var / n


def _ratio(log: float) -> float:
    """Return the ratio; what a lying device sends must not overflow."""
    return math.exp(min(log, 700.0))
