"""What must hold before the next wave, judged per blueprint over tallies; fails closed.

Four rules: enough devices *answered*, the *soak* has passed, *failures* are within budget, and
the paired *measurements* show no regression. A missing number is a refusal, never a default.
Bounds come from confidence sequences, so that a look after every report costs nothing: of all
rollouts of a sound model version, gates over bounds halt at most a share `HALT_ERROR`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from types import MappingProxyType
from typing import NamedTuple

from agent.protocol.words import ExecutionState
from control_plane.domain import sequential
from control_plane.domain.measured import (
    ALREADY_RUNNING,
    BY_RATIO,
    ENOUGH_FOR_SPREAD,
    FIRST_TRIALS,
    GOLDEN,
    HALT_ERROR,
    METRICS,
    TRIALS,
    Measured,
    Seen,
    disagreed,
    disagreement,
    interval,
    paired,
)
from control_plane.domain.rollout import FAILURES, IN_FLIGHT, TERMINAL, WITHDRAWN, RolloutSpec

__all__ = [  # the words of measurements are read from here as well
    "ALREADY_RUNNING", "FIRST_TRIALS", "GOLDEN", "METRICS", "TRIALS", "Gate", "Group", "Measured",
    "Seen", "Verdict", "advance", "all_seen", "disagreed", "failures", "interval", "paired",
    "stops",
]  # fmt: skip


@dataclass(frozen=True)
class Group:
    """The tallies of one blueprint in one wave."""

    wave: int
    blueprint: str
    counts: Mapping[ExecutionState, int] = field(default_factory=dict)
    measured: Mapping[str, Measured] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def in_flight(self) -> int:
        return self.count(IN_FLIGHT)

    @property
    def eligible(self) -> int:
        return self.total - self.count(WITHDRAWN)

    @property
    def answered(self) -> int:
        return self.count(TERMINAL - WITHDRAWN)

    @property
    def failures(self) -> int:
        return self.count(FAILURES)

    @property
    def tried(self) -> int:
        """Devices that kept it or failed; a rejection says nothing of the model."""
        return self.failures + self.of(ExecutionState.SUCCEEDED)

    def of(self, state: ExecutionState) -> int:
        return self.counts.get(state, 0)

    def count(self, states: Iterable[ExecutionState]) -> int:
        return sum(self.counts.get(state, 0) for state in states)


NOTHING_SEEN: Mapping[str, Seen] = MappingProxyType({})
NOBODY: frozenset[str] = frozenset()
ROUNDING = 1e-6
"""A share is of whole tokens; sums of it are not so exact."""


class Verdict(StrEnum):
    """What a gate says: go on, not yet, or stop."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    HOLD = "hold"
    BREACH = "breach"


@dataclass(frozen=True)
class Gate:
    """One rule with the numbers it was judged on; `text` says it for people."""

    rule: str
    wave: int
    blueprint: str
    verdict: Verdict
    text: str
    metric: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    n: int = 0


class _By(NamedTuple):
    """What one blueprint's gates are judged by."""

    spec: RolloutSpec
    wave: int
    acknowledged: int
    seen: Seen
    error: float
    """How often each of its bounds may halt falsely."""


def stops(
    spec: RolloutSpec,
    groups: Sequence[Group],
    acknowledged: Mapping[str, int],
    wave: int,
    *,
    seen: Mapping[str, Seen] = NOTHING_SEEN,
    without: frozenset[str] = NOBODY,
) -> tuple[Gate, ...]:
    """Judge what may halt: failures, and regressions that are proven over devices."""
    found = failures(spec, groups, acknowledged, wave, seen=seen, without=without)
    for name in _names(groups, without):
        by = _By(spec, wave, 0, seen.get(name, Seen()), _halt_error(spec, groups))
        group = _joined(groups, name, len(spec.waves))
        judged = (_metric(by, group, metric, 0) for metric in sorted(spec.gates.tolerance))
        found += tuple(gate for gate in judged if gate.verdict is Verdict.BREACH)
    return found


def failures(
    spec: RolloutSpec,
    groups: Sequence[Group],
    acknowledged: Mapping[str, int],
    wave: int,
    *,
    seen: Mapping[str, Seen] = NOTHING_SEEN,
    without: frozenset[str] = NOBODY,
) -> tuple[Gate, ...]:
    """Judge each blueprint's failures, of all waves: late ones count until the rollout ends."""
    error = _halt_error(spec, groups)
    found: list[Gate] = []
    for name in _names(groups, without):
        by = _By(spec, wave, acknowledged.get(name, 0), seen.get(name, Seen()), error)
        group = _joined(groups, name, len(spec.waves))
        found.append(_failures(by, group))
        if spec.gates.max_failure_rate is not None:
            found.append(_rate(by, group, spec.gates.max_failure_rate))
    return tuple(found)


def advance(
    spec: RolloutSpec,
    groups: Sequence[Group],
    wave: int,
    opened_at: float,
    now: float,
    *,
    seen: Mapping[str, Seen] = NOTHING_SEEN,
    without: frozenset[str] = NOBODY,
) -> tuple[Gate, ...]:
    """Judge whether the wave is good enough to open the next, but for the failures."""
    error = _halt_error(spec, groups)
    found: list[Gate] = []
    mine = (g for g in groups if g.wave == wave and g.blueprint not in without)
    for group in sorted(mine, key=lambda g: g.blueprint):
        so_far = _joined(groups, group.blueprint, wave)
        by = _By(spec, wave, 0, seen.get(group.blueprint, Seen()), error)
        found.append(_answered(spec, group))
        found.append(_soak(spec, so_far, wave, opened_at, now))
        found.extend(_measurements(by, so_far))
    return tuple(found)


def all_seen(groups: Sequence[Group]) -> dict[str, Seen]:
    """Return what a person sees who resumes now, by blueprint."""
    last = max((group.wave for group in groups), default=0)
    whole = (_joined(groups, name, last) for name in _names(groups, NOBODY))
    return {group.blueprint: Seen(group.tried, group.measured) for group in whole}


def _names(groups: Iterable[Group], without: frozenset[str]) -> list[str]:
    return sorted({group.blueprint for group in groups} - without)


def _halt_error(spec: RolloutSpec, groups: Iterable[Group]) -> float:
    """Share the error of a false halt out to every bound that may halt (Bonferroni)."""
    bounds = len(spec.gates.tolerance) + (spec.gates.max_failure_rate is not None)
    return HALT_ERROR / (bounds * max(1, len(_names(groups, NOBODY))))


def _joined(groups: Sequence[Group], blueprint: str, last: int) -> Group:
    mine = [group for group in groups if group.blueprint == blueprint and group.wave <= last]
    counts: dict[ExecutionState, int] = {}
    metrics: dict[str, list[Measured]] = {}
    for group in mine:
        for state, n in group.counts.items():
            counts[state] = counts.get(state, 0) + n
        for name, measured in group.measured.items():
            metrics.setdefault(name, []).append(measured)
    merged = {name: reduce(Measured.merged, parts) for name, parts in metrics.items()}
    return Group(last, blueprint, counts, merged)


def _failures(by: _By, group: Group) -> Gate:
    known, budget = by.acknowledged, by.spec.gates.max_failures
    fresh = group.failures - known
    parts = [f"{group.of(state)} {state}" for state in sorted(FAILURES) if group.of(state)]
    seen = f" ({', '.join(parts)})" if parts else ""
    before = f", {known} acknowledged" if known else ""
    rejected = group.of(ExecutionState.REJECTED)
    apart = f"; {rejected} REJECTED, counted apart" if rejected else ""
    return Gate(
        rule="failures",
        wave=by.wave,
        blueprint=group.blueprint,
        verdict=Verdict.BREACH if fresh > budget else Verdict.PASS,
        text=f"{group.blueprint}: {fresh} failures{seen}{before}, at most {budget} allowed{apart}",
        value=fresh,
        limit=budget,
        n=group.answered,
    )


def _rate(by: _By, group: Group, limit: float) -> Gate:
    failed = max(0, group.failures - by.acknowledged)
    tried = max(failed, group.tried - by.seen.tried)
    low, high = sequential.share(failed, tried, by.error)
    word = "more than" if low > limit else "not proven to be more than"
    return Gate(
        rule="failure_rate",
        wave=by.wave,
        blueprint=group.blueprint,
        verdict=Verdict.BREACH if low > limit else Verdict.PASS,
        text=f"{group.blueprint}: {failed} of {tried} failed, so {100 * low:.2g} to "
        f"{100 * high:.2g} % do, {word} {100 * limit:.2g} %",
        value=failed / tried if tried else 0.0,
        low=low,
        high=high,
        limit=limit,
        n=tried,
    )


def _answered(spec: RolloutSpec, group: Group) -> Gate:
    need = max(1, math.ceil(spec.gates.min_answered * group.eligible - 1e-9))
    enough = group.answered >= need
    left = f" ({group.total - group.eligible} withdrawn)" if group.total > group.eligible else ""
    return Gate(
        rule="answered",
        wave=group.wave,
        blueprint=group.blueprint,
        verdict=Verdict.PASS if enough else Verdict.HOLD,
        text=f"{group.blueprint}: {group.answered} of {group.eligible} devices{left} "
        f"answered, {need} needed",
        value=group.answered,
        limit=need,
        n=group.eligible,
    )


def _soak(spec: RolloutSpec, group: Group, wave: int, opened_at: float, now: float) -> Gate:
    soak_s = spec.wave_soak_s(wave)
    soaked = group.of(ExecutionState.SUCCEEDED)
    if soaked == 0:
        verdict, text = Verdict.HOLD, f"{group.blueprint}: no device has soaked and confirmed"
    elif now < opened_at + soak_s:
        verdict, text = Verdict.HOLD, f"{group.blueprint}: the soak of {soak_s:g} s is not over"
    else:
        verdict = Verdict.PASS
        text = f"{group.blueprint}: {soaked} devices confirmed after a soak of {soak_s:g} s"
    return Gate(
        rule="soak",
        wave=wave,
        blueprint=group.blueprint,
        verdict=verdict,
        text=text,
        value=soaked,
        limit=soak_s,
        n=soaked,
    )


def _measurements(by: _By, group: Group) -> list[Gate]:
    trials = group.measured.get(TRIALS, Measured()).n
    first = group.measured.get(FIRST_TRIALS, Measured()).n
    exempt = group.measured.get(ALREADY_RUNNING, Measured()).n
    needed = group.of(ExecutionState.SUCCEEDED) - exempt
    if trials < needed:
        text = f"{group.blueprint}: {needed} devices confirmed, {trials} sent their trial"
        return [_trials(group, by.wave, Verdict.HOLD, text, trials)]
    if group.of(ExecutionState.SUCCEEDED) == 0:
        text = f"{group.blueprint}: no device has confirmed, so nothing is proven"
        return [_trials(group, by.wave, Verdict.HOLD, text, trials)]
    if needed - first <= 0:
        text = f"{group.blueprint}: {first} first installs, judged by their limits"
        found = [_trials(group, by.wave, Verdict.PASS, text, trials)]
    else:
        names = sorted(by.spec.gates.tolerance)
        found = [_metric(by, group, name, needed - first) for name in names]
    if group.measured.get(GOLDEN, Measured()).n > 0:
        found.append(_golden(by, group, group.measured[GOLDEN], trials))
    return found


def _golden(by: _By, group: Group, measured: Measured, trials: int) -> Gate:
    """Judge what devices say of their outputs; one whose own are wrong has rolled back."""
    n = measured.n
    mean, high, limit = disagreement(measured)
    head = f"{group.blueprint}: {GOLDEN} {100 * mean:.2g} % (up to {100 * high:.2g} %, {n} devices)"
    good = n >= trials and high <= limit + ROUNDING
    if n < trials:
        text = f"{head}, missing on {trials - n} of {trials} devices"
    else:
        text = f"{head}, {'at most' if good else 'not shown to be within'} {100 * limit:.2g} %"
    return Gate(
        rule="measurement",
        wave=by.wave,
        blueprint=group.blueprint,
        verdict=Verdict.PASS if good else Verdict.HOLD,
        text=text,
        metric=GOLDEN,
        value=mean,
        high=high,
        limit=limit,
        n=n,
    )


def _trials(group: Group, wave: int, verdict: Verdict, text: str, n: int) -> Gate:
    return Gate("measurement", wave, group.blueprint, verdict, text, metric=TRIALS, n=n)


def _metric(by: _By, group: Group, name: str, needed: int) -> Gate:
    measured = group.measured.get(name, Measured())
    bound = 1 + by.spec.gates.tolerance[name]
    if measured.n < max(1, needed):
        text = f"{group.blueprint}: {name} is missing on {needed - measured.n} of {needed} devices"
        return Gate(
            "measurement", by.wave, group.blueprint, Verdict.HOLD, text, metric=name, n=measured.n
        )
    fresh = measured.since(by.seen.measured.get(name, Measured()))
    proven = fresh.n >= ENOUGH_FOR_SPREAD and interval(fresh, by.error)[1] > bound
    judged = fresh if proven else measured
    ratio, low, high = interval(judged, by.error)
    few = judged.n < ENOUGH_FOR_SPREAD
    good = not proven and (ratio if few and name in BY_RATIO else high) <= bound
    verdict = Verdict.BREACH if proven else Verdict.PASS if good else Verdict.HOLD
    return Gate(
        rule="measurement",
        wave=by.wave,
        blueprint=group.blueprint,
        verdict=verdict,
        text=f"{group.blueprint}: {name} ratio {ratio:.3f} ({_span(low, high)}, "
        f"{judged.n} devices), {_against(verdict, low, bound, known=not few)}",
        metric=name,
        value=ratio,
        low=low,
        high=high,
        limit=bound,
        n=judged.n,
    )


def _span(low: float, high: float) -> str:
    # So few devices that nothing bounds their class from below.
    return f"up to {high:.3f}" if low == 0 else f"{low:.3f} to {high:.3f}"


def _against(verdict: Verdict, low: float, bound: float, *, known: bool) -> str:
    """Say how a ratio stands to its bound; `known`: proof that does not halt was acknowledged."""
    if verdict is Verdict.PASS:
        return f"at most {bound:.2f} tolerated"
    if low <= bound:
        return f"not shown to be within {bound:.2f}"
    acknowledged = ", acknowledged" if verdict is Verdict.HOLD and known else ""
    return f"worse than {bound:.2f}{acknowledged}"
