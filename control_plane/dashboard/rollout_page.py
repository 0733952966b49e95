"""The rollout page in words: headline, waves, gates, changes per device, decisions; pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from control_plane.dashboard import charts, words
from control_plane.dashboard.words import Look, look_of
from control_plane.domain.rollout import RolloutState
from control_plane.domain.rollout_verbs import legal
from control_plane.services.rollout_views import (
    BenchView,
    DecisionView,
    ExecutionView,
    RolloutView,
    WaveView,
)

PRIMARY = "token_ms"
MOST_REASONS = 3


@dataclass(frozen=True)
class Verb:
    """Something a person may do to a rollout."""

    name: str
    label: str
    means: str
    css: str = ""
    key: str = ""


VERBS = (
    Verb("start", "Start", "Builds what is missing, then opens the first wave.", "primary"),
    Verb("approve", "Approve", "Lets the waiting wave open.", "primary"),
    Verb(
        "deny", "Deny", "Ends the rollout with your reason; devices keep what they run.", "danger"
    ),
    Verb(
        "pause",
        "Pause",
        "Withdraws every offer that has not started and makes no new one.",
        key="p",
    ),
    Verb(
        "resume",
        "Resume",
        "Goes on; only failures after those seen so far can stop it again.",
        "primary",
    ),
    Verb("promote", "Skip to next wave", "Opens the next wave without waiting for its gates."),
    Verb(
        "revert",
        "Revert",
        "Returns every updated device to what it ran before, still on its disk.",
        "danger",
    ),
    Verb("abort", "Abort", "Gives the rollout up for good.", "danger"),
    Verb("retry", "Retry the failed", "Makes a draft with the same policy for whoever failed."),
)


def allowed(view: RolloutView) -> list[str]:
    """Return the verbs that a page offers; a retry only where somebody failed."""
    counts = counts_of(view)
    failed = any(counts[state] for state in ("ROLLED_BACK", *words.FAILED))
    return [verb for verb in legal(RolloutState(view.state)) if verb != "retry" or failed]


def _any_of(states: Iterable[str]) -> str:
    listed = ", ".join(f'"{state}"' for state in states)
    return f"state in ({listed})"


# What becomes of devices, each with the filter that lists them.
SHARES = (
    ("All", ""),
    ("Updated", 'state = "SUCCEEDED"'),
    ("In progress", _any_of(words.BUSY)),
    ("Rolled back", 'state = "ROLLED_BACK"'),
    ("Failed", _any_of(words.FAILED)),
    ("Waiting", 'state = "QUEUED"'),
)
FAILED = SHARES[4][1]


@dataclass(frozen=True)
class Figures:
    """The headline counts of a rollout."""

    total: int
    decided: int
    share: str
    updated: int
    busy: int
    busy_words: str
    rolled_back: int
    failed: int
    failed_words: str


@dataclass(frozen=True)
class WaveCard:
    """One wave as its card shows it."""

    name: str
    total: int
    open: bool
    look: Look
    bar: str
    caption: str


@dataclass(frozen=True)
class ChangePanel:
    """The paired changes of one blueprint."""

    blueprint: str
    caption: str
    svg: str


@dataclass(frozen=True)
class DecisionLine:
    """One decision in a rollout's list."""

    at: datetime
    what: str
    css: str
    wave: str
    why: list[str]
    more: int
    who: str


# --- headline and waves -----------------------------------------------------------------------


def figures(view: RolloutView) -> Figures:
    """Count a rollout's devices by what became of them."""
    counts = counts_of(view)
    total = sum(wave.total for wave in view.waves)
    decided = sum(counts[state] for state in words.ENDED)
    busy = {state: counts[state] for state in words.BUSY if counts[state]}
    failed = {state: counts[state] for state in words.FAILED if counts[state]}
    return Figures(
        total=total,
        decided=decided,
        share=f"{100 * decided / total:.1f}" if total else "0.0",
        updated=counts["SUCCEEDED"],
        busy=sum(busy.values()),
        busy_words=_in_words(busy),
        rolled_back=counts["ROLLED_BACK"],
        failed=sum(failed.values()),
        failed_words=_in_words(failed),
    )


def counts_of(view: RolloutView) -> Counter[str]:
    """Return how many devices are in each state."""
    counts: Counter[str] = Counter()
    for wave in view.waves:
        counts.update(wave.counts)
    return counts


def wave_card(wave: WaveView, state: str) -> WaveCard:
    """Say how far a wave is; `state` is the rollout's."""
    number = str(wave.index + 1)
    looks = {"open": Look(number, "open", ""), "done": Look("✓", "done", "pass")}
    look = looks.get(wave.state, Look(number, "planned", "idle"))
    if wave.state == "open" and state == "HALTED":
        look = Look("✕", "halted", "fail")
    bad = sum(wave.counts.get(state, 0) for state in ("ROLLED_BACK", *words.FAILED))
    updated = wave.counts.get("SUCCEEDED", 0)
    caption = f"{updated} of {wave.total} updated{f' · {bad} lost' if bad else ''}"
    if wave.state == "planned":
        caption = f"{words.devices(wave.total)} waiting"
    return WaveCard(
        name=wave.name,
        total=wave.total,
        open=wave.state == "open",
        look=look,
        bar=bar(wave.counts, wave.total, f"{wave.name}: {caption}"),
        caption=caption,
    )


def bar(counts: Mapping[str, int], total: int, title: str) -> str:
    """Return a bar of what became of a number of devices."""
    updated = counts.get("SUCCEEDED", 0)
    busy = sum(counts.get(state, 0) for state in words.BUSY)
    back = counts.get("ROLLED_BACK", 0)
    failed = sum(counts.get(state, 0) for state in words.FAILED)
    rest = max(0, total - updated - busy - back - failed)
    return charts.stacked_bar(
        [
            charts.Segment("updated", updated, "good"),
            charts.Segment("in progress", busy, "busy"),
            charts.Segment("rolled back", back, "warn"),
            charts.Segment("failed", failed, "bad"),
            charts.Segment("waiting", rest, "track"),
        ],
        title=title,
    )


def wave_name(view: RolloutView, index: int) -> str:
    """Return a wave's name."""
    return view.waves[index].name if 0 <= index < len(view.waves) else ""


def _in_words(counts: Mapping[str, int]) -> str:
    return " · ".join(f"{n} {look_of(state).word}" for state, n in counts.items())


# --- measured changes -------------------------------------------------------------------------


def change_panels(trials: Sequence[BenchView], tolerance: float | None) -> list[ChangePanel]:
    """Return the paired change of time per token, a panel per blueprint, all on one scale.

    Only each device's newest trial counts: an inconclusive one may have been repeated.
    """
    newest = {trial.device: trial for trial in sorted(trials, key=lambda t: t.id)}
    ordered = sorted(newest.values(), key=lambda t: t.blueprint)
    groups = {
        blueprint: [c for trial in group if (c := paired(trial)) is not None]
        for blueprint, group in groupby(ordered, key=lambda t: t.blueprint)
    }
    between = charts.span([c for changes in groups.values() for c in changes], tolerance)
    panels = []
    for blueprint, changes in groups.items():
        if changes:
            caption = f"{words.devices(len(changes))}, median {charts.median_words(changes)}"
            title = f"{blueprint}: change of time per token per device"
            svg = charts.change_chart(changes, tolerance=tolerance, title=title, between=between)
            panels.append(ChangePanel(blueprint, caption, svg))
    return panels


def paired(trial: BenchView) -> charts.Change | None:
    """Return a trial's change of time per token; None if it was not compared."""
    for metric in trial.metrics:
        if metric.name != PRIMARY or metric.ratio is None:
            continue
        if metric.ci_low is None or metric.ci_high is None:
            continue
        return charts.Change(
            trial.device, metric.ratio, metric.ci_low, metric.ci_high, metric.verdict
        )
    return None


def tolerance_of(view: RolloutView) -> float | None:
    """Return the tolerated worsening of time per token."""
    tolerance = view.spec.get("gates", {}).get("tolerance", {}).get(PRIMARY)
    return float(tolerance) if tolerance is not None else None


def incumbents(trials: Iterable[BenchView]) -> str:
    """Return the versions that the new one was measured against."""
    return ", ".join(sorted({trial.incumbent for trial in trials if trial.incumbent}))


@dataclass(frozen=True)
class FeedLine:
    """The newest of what devices said."""

    at: datetime
    device: str
    state: str
    said: str


def feed(trials: Iterable[BenchView], failed: Iterable[ExecutionView], most: int) -> list[FeedLine]:
    """Return the newest trials and failures, the newest first."""
    lines = [FeedLine(t.at, t.device, t.verdict, _short_change(t)) for t in trials]
    lines += [FeedLine(e.updated_at, e.device, e.state, words.said(e.reason)) for e in failed]
    return sorted(lines, key=lambda line: line.at, reverse=True)[:most]


def _short_change(trial: BenchView) -> str:
    change = paired(trial)
    return "not compared" if change is None else f"{charts.percent(change.ratio)} per token"


def change_words(trial: BenchView) -> str:
    """Return a trial's change of time per token."""
    change = paired(trial)
    if change is None:
        return "not compared"
    low, high = charts.signed(change.low), charts.percent(change.high)
    return f"{charts.percent(change.ratio)} ({low} to {high})"


# --- decisions --------------------------------------------------------------------------------

_STOPS = frozenset({"halt", "send_back", "abort", "deny", "revert"})
_GOES_ON = frozenset({"succeed", "open_wave", "approve", "resume", "promote"})
_Say = Callable[[Mapping[str, Any]], bool]


def decision_line(view: RolloutView, decision: DecisionView) -> DecisionLine:
    """Say one decision, with the reasons that matter for it."""
    spoken: _Say = _not_passed if decision.kind in {"hold", "halt", "send_back"} else _always
    texts = [str(gate.get("text", "")) for gate in decision.evidence if spoken(gate)]
    if decision.kind in {"open_wave", "succeed", "await_approval"} and texts:
        texts = [f"{len(texts)} of {len(texts)} gates held"]
    why = [text for text in (decision.reason, *texts) if text]
    kind = decision.kind
    return DecisionLine(
        at=decision.at,
        what=kind.replace("_", " "),
        css="fail" if kind in _STOPS else "pass" if kind in _GOES_ON else "hold",
        wave=wave_name(view, decision.wave),
        why=why[:MOST_REASONS],
        more=max(0, len(why) - MOST_REASONS),
        who=decision.actor,
    )


def _not_passed(gate: Mapping[str, Any]) -> bool:
    return gate.get("verdict") != "pass"


def _always(_gate: Mapping[str, Any]) -> bool:
    return True
