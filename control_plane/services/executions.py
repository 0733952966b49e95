"""What devices report of their part in a rollout: transitions and trials, each counted once.

A batch is read once, decided here report by report in the order of the devices, and stored at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.protocol.messages import Bench, Event
from agent.protocol.words import ExecutionState, Reason, Verdict
from control_plane.domain import gates
from control_plane.domain.device import DeviceId
from control_plane.domain.gates import Measured
from control_plane.domain.rollout import STEPS, TERMINAL, WITHDRAWN, moves_forward
from control_plane.services.scope import Scope
from control_plane.store import benches, progress
from control_plane.store.benches import Trial
from control_plane.store.database import Transaction
from control_plane.store.progress import Change, Line, Part, Step

Report = tuple[DeviceId, Event | Bench]

_BEFORE_IT_RUNS = frozenset(STEPS) - {ExecutionState.SOAKING}

# What a device has done stays true even where its order has been taken back since.
_FACTS = frozenset(
    {
        ExecutionState.SUCCEEDED,
        ExecutionState.FAILED,
        ExecutionState.REJECTED,
        ExecutionState.ROLLED_BACK,
    }
)


def apply(
    scope: Scope, reports: Sequence[Report], runs: Mapping[DeviceId, str] | None = None
) -> int:
    """Apply reports, each device's in their order; return how many changed something.

    Forward only: a repeated, late or unknown report changes nothing, apart from the device's
    history, which keeps every change of what runs.

    Args:
        scope: the scope.
        reports: whose, and what.
        runs: what `running` returned, once the devices that run another bundle now were locked.
    """
    parts = progress.locked(scope.tx, {report.execution for _, report in reports})
    again = reports if runs is None else [one for one in reports if _left(parts, one[1])]
    batch = _Batch(scope.tx, parts, {**(runs or {}), **running(scope, again)})
    changed = 0
    for device, report in reports:
        part = batch.part(device, report)
        if part is None:
            continue
        if isinstance(report, Event):
            changed += batch.event(part, report)
        else:
            batch.trial(part, report)
    moved = progress.move(scope.tx, scope.now, batch.changes())
    _note_running(scope, batch.lines)
    changed += _store_trials(scope, batch.trials)
    needless = [(part, _NEEDLESS) for part in batch.needless if part.id in moved]
    benches.count(scope.tx, needless)
    return changed


def running(scope: Scope, reports: Iterable[Report]) -> dict[DeviceId, str]:
    """Return what the histories of these devices say they run, where reports speak of that."""
    devices = {device for device, report in reports if isinstance(report, Event) and report.digest}
    return progress.running(scope.tx, devices)


def _left(parts: Mapping[str, Part], report: Event | Bench) -> bool:
    """Return whether a device may say that it runs the candidate no more.

    That it ran it, another gateway may have noted while we waited for the rollout.
    """
    part = parts.get(report.execution)
    if part is None or not isinstance(report, Event) or part.state in _BEFORE_IT_RUNS:
        return False
    return report.digest not in ("", part.digest)


_NEEDLESS = {gates.ALREADY_RUNNING: Measured(n=1)}


@dataclass
class _Moving:
    """A part while a batch's reports are applied to it."""

    part: Part
    state: ExecutionState
    reason: str
    reverted: bool
    steps: list[Step] = field(default_factory=list)


@dataclass
class _Batch:
    """What a batch finds, and what it will change."""

    tx: Transaction
    parts: Mapping[str, Part]
    running: dict[DeviceId, str]
    moving: dict[str, _Moving] = field(default_factory=dict)
    lines: list[dict[str, str]] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    needless: list[Part] = field(default_factory=list)

    def part(self, device: DeviceId, report: Event | Bench) -> _Moving | None:
        """Return the part that a report speaks of, as far as it has come."""
        part = self.parts.get(report.execution)
        if part is None or part.device != device:
            return None
        now = self.moving.get(part.id)
        if now is None:
            now = self.moving[part.id] = _Moving(part, part.state, part.reason, part.reverted)
        return now

    def event(self, now: _Moving, event: Event) -> bool:
        if _is_return(now.part, event):
            self._runs(now, event)
            return _mark_reverted(now)
        if now.state in TERMINAL:
            if event.state in _FACTS:
                self._ran(now, event)
            return False
        if not _counts(now, event):
            return False
        self._runs(now, event)
        after, reason = event.state, event.reason.value
        if after is ExecutionState.SUCCEEDED and event.digest != now.part.digest:
            after, reason = ExecutionState.FAILED, Reason.BUNDLE_MISMATCH.value
        now.steps.append(Step(now.part.id, now.state, after, reason, event.digest))
        now.state, now.reason = after, reason
        if after is ExecutionState.SUCCEEDED and reason == gates.ALREADY_RUNNING:
            self.needless.append(now.part)
        return True

    def trial(self, now: _Moving, bench: Bench) -> None:
        # Of one that was taken out of the rollout: kept, and judged by nobody.
        conclusive = bench.verdict is not Verdict.INCONCLUSIVE and now.state not in WITHDRAWN
        self.trials.append(Trial(now.part, bench, conclusive))

    def changes(self) -> list[Change]:
        return [
            Change(now.part, now.state, now.reason, now.reverted, tuple(now.steps))
            for now in self.moving.values()
            if now.steps
        ]

    def _runs(self, now: _Moving, event: Event) -> None:
        device = now.part.device
        if event.digest and self.running.get(device) != event.digest:
            why = event.reason.value or event.state.value.lower()
            self._line(device, event.digest, now.part.id, why)

    def _ran(self, now: _Moving, event: Event) -> None:
        """Note what a device did in a part that had ended; by now it may run something else.

        Reports of two parts may overtake each other, and the last line says what runs now.
        """
        device, part = now.part.device, now.part.id
        told = any((one["part"], one["digest"]) == (part, event.digest) for one in self.lines)
        if not event.digest or told or progress.noted(self.tx, device, part, event.digest):
            return
        last = self._last_line(device)
        self._runs(now, event)
        if last is None:
            return
        if last.generation > event.generation or (now.reverted and last.part == part):
            self._line(device, last.digest, last.part, last.why)

    def _last_line(self, device: DeviceId) -> Line | None:
        mine = [one for one in self.lines if one["device"] == device]
        if not mine:
            return progress.newest_line(self.tx, device)
        last = mine[-1]
        return Line(last["digest"], last["part"], last["why"], self.parts[last["part"]].generation)

    def _line(self, device: DeviceId, digest: str, part: str, why: str) -> None:
        if self.running.get(device) != digest:
            self.running[device] = digest
            self.lines.append({"device": device, "digest": digest, "part": part, "why": why})


def _mark_reverted(now: _Moving) -> bool:
    if now.reverted:
        return False
    now.reverted = True
    now.steps.append(Step(now.part.id, now.state, now.state, "reverted", now.part.previous))
    return True


def _is_return(part: Part, event: Event) -> bool:
    """Return whether the event says that the device is back on what it ran before."""
    ordered = part.revert_generation > 0 and event.generation >= part.revert_generation
    return ordered and event.digest == part.previous and event.state in _FACTS


def _counts(now: _Moving, event: Event) -> bool:
    if now.state is ExecutionState.QUEUED or event.generation < now.part.generation:
        # Said under an order that we took back: progress means nothing, facts stay facts.
        return event.state in _FACTS
    return moves_forward(now.state, event.state)


def _note_running(scope: Scope, lines: Sequence[Mapping[str, str]]) -> None:
    versions = benches.versions(scope.tx, [line["digest"] for line in lines])
    progress.note_running(
        scope.tx,
        scope.now,
        [{**line, "version": versions.get(line["digest"], "")} for line in lines],
    )


def _store_trials(scope: Scope, trials: Sequence[Trial]) -> int:
    """Store trials that nobody has stored; return how many those were."""
    fresh = benches.unknown(scope.tx, trials)
    conclusive = [trial for trial in fresh if trial.conclusive]
    newest = benches.counted(scope.tx, {trial.part.id for trial in conclusive})
    benches.add(scope.tx, scope.now, fresh)
    added: list[tuple[Part, Mapping[str, Measured]]] = []
    for trial in conclusive:
        before = newest.get(trial.part.id)
        if before is not None and trial.order < before[0]:
            continue
        if before is not None:
            added.append((trial.part, benches.negated(before[1])))
        mine = benches.summaries(trial.report)
        newest[trial.part.id] = trial.order, mine
        added.append((trial.part, mine))
    benches.count(scope.tx, added)
    return len(fresh)
