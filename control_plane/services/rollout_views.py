"""What the rollout services answer: plain frozen values for the API, the CLI and the pages."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class WaveView:
    """One wave with its counts; `state` is planned, open or done."""

    index: int
    name: str
    total: int
    counts: dict[str, int]
    by_blueprint: dict[str, dict[str, int]]
    state: str
    opened_at: datetime | None


@dataclass(frozen=True)
class ApprovalView:
    """What the wave that waits needs: `left` people more, out of `of` (empty: of anybody)."""

    wave: int
    needed: int
    of: list[str]
    by: list[str]
    left: int


@dataclass(frozen=True)
class RolloutView:
    """One rollout as it stands."""

    name: str
    model: str
    version: str
    state: str
    state_reason: str
    revision: int
    wave: int
    waves: list[WaveView]
    misfits: list[dict[str, str]]
    created_by: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    spec: dict[str, Any]
    retries: str = ""
    """The rollout whose failed devices this one retries."""
    approval: ApprovalView | None = None
    misfit_count: int = 0
    misfit_reasons: dict[str, int] = field(default_factory=dict)
    """Devices that match and cannot get it, by reason; `misfits` names the first of them."""


@dataclass(frozen=True)
class ExecutionView:
    """One device's part."""

    id: str
    device: str
    blueprint: str
    wave: int
    state: str
    reason: str
    digest: str
    version: str
    generation: int
    offered_at: datetime | None
    updated_at: datetime
    reverted: bool = False


@dataclass(frozen=True)
class DecisionView:
    """One stored decision with its evidence, gate by gate."""

    at: datetime
    wave: int
    kind: str
    evidence: list[dict[str, Any]]
    actor: str
    reason: str


@dataclass(frozen=True)
class MetricView:
    """One paired measurement of a trial."""

    name: str
    unit: str
    candidate: float
    incumbent: float | None
    ratio: float | None
    ci_low: float | None
    ci_high: float | None
    tolerance: float | None
    limit: float | None
    n: int
    verdict: str


@dataclass(frozen=True)
class BenchView:
    """One trial on one device; candidate and incumbent are model versions."""

    id: int
    device: str
    rollout: str
    wave: int
    blueprint: str
    candidate: str
    incumbent: str
    verdict: str
    at: datetime
    metrics: list[MetricView]


@dataclass(frozen=True)
class PlannedWave:
    """One wave of a plan: the counts are of all, the names are the first ones.

    `devices` is in the order of the offers, and whole unless `truncated`; `by_site` and
    `bytes_by_site` are of the sites to which most bytes go, out of `sites`.
    """

    index: int
    name: str
    total: int
    by_blueprint: dict[str, int]
    devices: list[str]
    bytes: int
    by_site: dict[str, int] = field(default_factory=dict)
    bytes_by_site: dict[str, int] = field(default_factory=dict)
    sites: int = 0
    truncated: bool = False


@dataclass(frozen=True)
class MisfitView:
    """A device that matches but cannot get it, and why."""

    device: str
    blueprint: str
    reason: str


@dataclass(frozen=True)
class PlanView:
    """Exactly what would happen; `bundles` names each blueprint's digest, empty if unbuilt.

    `misfits` names the first devices that match and cannot get it; the counts are of all of them.
    """

    name: str
    model: str
    version: str
    total: int
    bytes: int
    waves: list[PlannedWave]
    misfits: list[MisfitView]
    bundles: dict[str, str]
    misfit_count: int = 0
    misfit_reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """Why a rollout is where it is: its last decisive decision, gate by gate, and the trials."""

    name: str
    state: str
    headline: str
    decision: DecisionView | None
    trials: list[BenchView]
    next_steps: list[str]

    def text(self) -> str:
        """Say it for people, a line a fact."""
        lines = [f"{self.name}: {self.state}", self.headline]
        if self.decision is not None:
            lines += [f"  {_gate_line(gate)}" for gate in self.decision.evidence]
        lines += [f"  {_trial_line(trial)}" for trial in self.trials]
        lines += [f"next: {step}" for step in self.next_steps]
        return "\n".join(line for line in lines if line)


@dataclass(frozen=True)
class TickResult:
    """What one tick did; `going` names the rollouts that may have more to do at once."""

    rollouts: int
    decisions: int
    offered: int
    going: list[str] = field(default_factory=list)


def _gate_line(gate: dict[str, Any]) -> str:
    return f"[{gate['verdict']}] {gate['text']}"


def _trial_line(trial: BenchView) -> str:
    worst = [metric for metric in trial.metrics if metric.verdict != "pass"]
    numbers = ", ".join(_metric_text(metric) for metric in worst or trial.metrics)
    against = f" against {trial.incumbent}" if trial.incumbent else ""
    return f"trial on {trial.device}: {trial.candidate}{against}: {trial.verdict}: {numbers}"


def _metric_text(metric: MetricView) -> str:
    if metric.ratio is None or metric.ci_low is None or metric.ci_high is None:
        limit = "" if metric.limit is None else f" (limit {metric.limit:.4g})"
        return f"{metric.name} {metric.candidate:.4g} {metric.unit}{limit}"
    tolerated = "" if metric.tolerance is None else f", tolerated {1 + metric.tolerance:.2f}"
    interval = f"{metric.ci_low:.2f} to {metric.ci_high:.2f}"
    return f"{metric.name} ratio {metric.ratio:.2f} ({interval}{tolerated})"
