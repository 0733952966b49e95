"""PURE: what a simulated trial measures; the verdict is the agent's own, on drawn block values."""

import math
from typing import NamedTuple

from agent import verdict
from agent.protocol.manifest import Limits
from agent.protocol.messages import Metric, TrialPolicy
from agent.protocol.words import Verdict
from control_plane.local.fleet_simulator.draws import Draws
from control_plane.local.fleet_simulator.profile import TrialProfile

# What a token costs, and what else a model costs besides: (median in its unit, follows the speed)
_METRICS = {
    "token_ms": (1.0, True),
    "first_token_ms": (6.0, True),
    "load_ms": (20.0, False),
    "memory_mb": (12.0, False),
}
MIN_AGREEMENT = 0.9
DIGITS = 6
"""Of a block value: more would only make the message longer."""


class Truth(NamedTuple):
    """What is to be found out: time per token over the profile's, and candidate over incumbent."""

    speed: float
    slowdown: float
    paired: bool


class Measured(NamedTuple):
    """What a trial ends with."""

    verdict: Verdict
    metrics: list[Metric]
    blocks: dict[str, list[float]]
    looks: int
    """Blocks per side that were measured."""


def measure(
    draws: Draws, profile: TrialProfile, policy: TrialPolicy, truth: Truth, *what: object
) -> Measured:
    """Measure block after block until the verdict is clear, as a device does."""
    plan = verdict.looks(policy)
    terms = verdict.terms(
        policy, Limits(), agreement=1.0, min_agreement=MIN_AGREEMENT, paired=truth.paired
    )
    series = _series(draws, profile, truth, plan[-1], what)
    for look in plan:
        blocks = {name: values[:look] for name, values in series.items()}
        blocks["looks"] = [float(n) for n in plan]
        judged = verdict.judge(blocks, terms)
        if judged.verdict is not Verdict.INCONCLUSIVE or look == plan[-1]:
            return Measured(judged.verdict, judged.metrics, blocks, look)
    raise AssertionError("a plan has a last look")


def _series(
    draws: Draws, profile: TrialProfile, truth: Truth, blocks: int, what: tuple[object, ...]
) -> dict[str, list[float]]:
    series: dict[str, list[float]] = {}
    for name, (factor, follows) in _METRICS.items():
        base = profile.token_ms * factor * (truth.speed if follows else 1.0)
        shift = profile.trial_noise * draws.normal("trial", name, *what)
        centre = shift + (math.log(truth.slowdown) if follows else 0.0)
        ratios, incumbent = [], []
        for index in range(blocks):
            noise = profile.block_noise * draws.normal("block", name, index, *what)
            drift = profile.block_noise * draws.normal("drift", name, index, *what)
            ratios.append(round(math.exp(centre + noise), DIGITS))
            incumbent.append(round(base * math.exp(drift), DIGITS))
        candidate = [round(a * b, DIGITS) for a, b in zip(incumbent, ratios, strict=True)]
        series[f"candidate.{name}"] = candidate
        if truth.paired:
            series[f"incumbent.{name}"] = incumbent
            series[f"ratio.{name}"] = ratios
    return series
