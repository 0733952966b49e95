"""Simulating: what a recorded rollout would have done under another policy."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agent.protocol.words import ExecutionState
from control_plane.domain import rollout_view as words
from control_plane.domain.device import DeviceFacts
from control_plane.domain.errors import ConflictError, InvalidError
from control_plane.domain.gates import ALREADY_RUNNING
from control_plane.domain.replay_record import (
    Act,
    Answer,
    Course,
    Happened,
    Known,
    Record,
    Trial,
    Unknown,
    exempt,
)
from control_plane.domain.replay_world import RAN_IT
from control_plane.domain.rollout import TERMINAL, RolloutSpec
from control_plane.domain.rollout_replay import MOST_WHY, Told, first_halt, replay
from control_plane.domain.rollout_view import Event
from control_plane.services import rollout_document
from control_plane.services.rollout_reads import find
from control_plane.services.scope import Scope
from control_plane.store import replays as store
from control_plane.store.executions import ExecutionRow
from control_plane.store.replays import Decided, Moved, Tried
from control_plane.store.rollouts import RolloutRow

E = ExecutionState
_BUILDS = {"BuildsReady", "BuildsFailed"}
_ANSWERS = {"Approve", "Deny"}
# What takes a device out of a rollout, and is not the rollout's own doing.
_OUTSIDE = {"quarantined": E.CANCELED, "superseded": E.SUPERSEDED}
_FIXED = ("model", "version", "selector")


@dataclass(frozen=True)
class Simulation:
    """A rollout as it was, beside what it would have been."""

    name: str
    devices: int
    without_answer: int
    """Devices of which the record has no answer."""
    drawn: list[str]
    """Those of them that came to be offered it in the replay; they answered as drawn."""
    unknown: str
    seed: int
    recorded: Told
    replayed: Told
    spared: list[str]
    """Ran it in truth, and would not have."""
    newly_exposed: list[str]
    notes: list[str]
    policy: dict[str, Any]


def simulate(
    scope: Scope,
    name: str,
    *,
    policy: Mapping[str, Any] | None = None,
    unknown: str = Unknown.RATE.value,
    seed: int = 0,
) -> Simulation:
    """Replay a rollout; changes nothing.

    Args:
        scope: the scope.
        name: a rollout that was started.
        policy: fields of a rollout's `spec` that replace the recorded ones; none: its own policy.
        unknown: how devices answer of which there is no answer: succeed, fail, or rate.
        seed: for what is drawn.

    Raises:
        ConflictError: it was never started.
        InvalidError: the policy is wrong, or there is no rate to draw from.
    """
    row = find(scope, name)
    kept = _load(scope, row)
    record = _record(scope, row, kept)
    spec = _policy(row, policy or {})
    found = replay(record, spec, Unknown(unknown), seed)
    recorded = _really(record, row, kept)
    ran, would = set(recorded.ran), set(found.told.ran)
    silent = [one for one in record.devices if one.course is None or one.course.end is None]
    return Simulation(
        name=name,
        devices=len(record.devices),
        without_answer=len(silent),
        drawn=list(found.drawn),
        unknown=unknown,
        seed=seed,
        recorded=recorded,
        replayed=found.told,
        spared=sorted(ran - would),
        newly_exposed=sorted(would - ran),
        notes=list(found.notes),
        policy=rollout_document.to_document(spec)["spec"],
    )


@dataclass(frozen=True)
class _Kept:
    """What is stored of one rollout."""

    decided: list[Decided]
    parts: list[ExecutionRow]
    moves: dict[str, list[Moved]]
    tried: dict[str, list[Tried]]
    facts: dict[str, DeviceFacts]

    @property
    def started(self) -> float | None:
        return next((one.at.timestamp() for one in self.decided if one.kind == "start"), None)

    @property
    def sent_back(self) -> datetime | None:
        return next((one.at for one in self.decided if one.kind == "send_back"), None)


def _load(scope: Scope, row: RolloutRow) -> _Kept:
    return _Kept(
        store.decisions(scope.tx, row.name),
        store.parts(scope.tx, row.name),
        store.moves(scope.tx, row.name),
        store.trials(scope.tx, row.name),
        store.facts(scope.tx, row.name),
    )


def _record(scope: Scope, row: RolloutRow, kept: _Kept) -> Record:
    started = kept.started
    if started is None:
        raise ConflictError(f"rollout {row.name} was never started: there is nothing to replay")
    spec = rollout_document.spec_of(row.name, row.spec)
    clock = _Clock(spec, scope.now, scope.settings.tick_s, kept.sent_back)
    return Record(
        spec=spec,
        started=started,
        devices=tuple(_known(clock, part, kept) for part in kept.parts),
        acts=tuple(_acts(kept.decided, started)),
        answers=_answers(kept.decided),
        happened=tuple(_happened(one, started) for one in kept.decided),
        state=row.state,
        ended_s=None if row.ended_at is None else row.ended_at.timestamp() - started,
        tick_s=clock.tick_s,
    )


def _policy(row: RolloutRow, policy: Mapping[str, Any]) -> RolloutSpec:
    given = policy.get("spec", {}) if policy.get("kind") == "Rollout" else policy
    if not isinstance(given, Mapping):
        raise InvalidError("a policy is the spec of a rollout, or fields of it", field="policy")
    for name in _FIXED:
        if given.get(name, row.spec.get(name, "")) != row.spec.get(name, ""):
            raise InvalidError(
                f"{name} is of the record and cannot be another: its devices tried that one",
                field=f"policy.{name}",
            )
    return rollout_document.parse(
        {
            "apiVersion": rollout_document.API_VERSION,
            "kind": "Rollout",
            "metadata": {"name": row.name},
            "spec": {**row.spec, **given},
        }
    )


# --- devices ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Clock:
    spec: RolloutSpec
    now: datetime
    tick_s: float
    sent_back: datetime | None


def _known(clock: _Clock, part: ExecutionRow, kept: _Kept) -> Known:
    history = kept.moves.get(part.id, [])
    last = history[-1] if history else None
    away = None if last is None or last.after not in TERMINAL else _OUTSIDE.get(last.reason)
    return Known(
        device=part.device,
        blueprint=part.blueprint,
        wave=part.wave,
        position=part.position,
        course=_course(clock, history, kept.tried.get(part.id, [])),
        waits=_waits(history),
        gone_at=None if last is None or away is None else last.at.timestamp(),
        gone=away or E.CANCELED,
        can_return=part.previous not in {"", part.digest} or not part.previous,
        facts=kept.facts.get(part.device),
    )


def _course(clock: _Clock, history: Sequence[Moved], tried: Sequence[Tried]) -> Course | None:
    offers = [i for i, one in enumerate(history) if one.after is E.OFFERED]
    if not offers:
        return None
    offer = history[offers[-1]]
    since = history[offers[-1] + 1 :]
    if any(one.after is E.QUEUED for one in since):
        return None  # taken back before it had begun
    moved = [one for one in since if one.before is not one.after]
    steps = [(_after(one.at, offer), one.after) for one in moved]
    course = Course(
        steps=tuple(steps),
        trials=_trials(tried, moved, offer),
        why=moved[-1].reason if moved else "",
        returned_s=_returned(clock, since),
    )
    if not moved or moved[-1].after not in TERMINAL:
        return _unfinished(course, _after(clock.now, offer))
    if moved[-1].after in {E.CANCELED, E.SUPERSEDED}:
        return _unfinished(course, steps[-1][0], given_up=True)
    if moved[-1].after is E.TIMED_OUT:
        return _timed_out(clock, course)
    return course


def _waits(history: Sequence[Moved]) -> tuple[float, ...]:
    """Return how long each offer lay there that was taken back."""
    found: list[float] = []
    offered: datetime | None = None
    for one in history:
        if one.after is E.OFFERED:
            offered = one.at
        elif one.after is E.QUEUED and offered is not None:
            found.append((one.at - offered).total_seconds())
    return tuple(found)


def _unfinished(course: Course, known_s: float, *, given_up: bool = False) -> Course:
    steps = course.steps[:-1] if given_up else course.steps
    return Course(steps, course.trials, known_s=known_s, returned_s=course.returned_s)


def _timed_out(clock: _Clock, course: Course) -> Course:
    """Return the course of one that was given up: fallen silent, or slower than it was allowed.

    Nobody knows how a slow one would have ended; a silent one would have stayed silent.
    """
    limits = clock.spec.timeouts
    at = course.steps[-1][0]
    last_s, state = course.steps[-2] if len(course.steps) > 1 else (0.0, E.OFFERED)
    slow = at > limits.execution_s or at - last_s > limits.steps.get(state, float("inf"))
    if slow or course.why == "wave_timeout":
        return _unfinished(course, at, given_up=True)
    sign = max(last_s, at - limits.silent_s - clock.tick_s / 2)
    return Course(course.steps[:-1], course.trials, course.why, sign, returned_s=course.returned_s)


def _trials(tried: Sequence[Tried], moved: Sequence[Moved], offer: Moved) -> tuple[Trial, ...]:
    found = [Trial(_after(one.at, offer), one.added, one.ratios) for one in tried]
    found += [
        Trial(_after(one.at, offer), exempt())
        for one in moved
        if one.after is E.SUCCEEDED and one.reason == ALREADY_RUNNING
    ]
    return tuple(found)


def _returned(clock: _Clock, since: Sequence[Moved]) -> float | None:
    """Return how long a device took to go back, from the order on."""
    back = [one.at for one in since if one.before is one.after]
    if not back or clock.sent_back is None:
        return None
    return max(0.0, (back[0] - clock.sent_back).total_seconds())


def _after(at: datetime, offer: Moved) -> float:
    return max(0.0, (at - offer.at).total_seconds())


# --- decisions --------------------------------------------------------------------------------


def _event(data: Mapping[str, Any]) -> Event:
    facts = dict(data)
    event: Event = getattr(words, facts.pop("kind"))(**facts)
    return event


def _acts(decided: Sequence[Decided], started: float) -> list[Act]:
    """Return what people did, and when the bundles were there."""
    found: list[Act] = []
    built: set[float] = set()
    for one in decided:
        at, kind = one.at.timestamp(), one.event["kind"]
        if one.by_person and kind not in _ANSWERS:
            found.append(Act(at, _event(one.event)))
        elif kind in _BUILDS and at not in built:
            built.add(at)
            found.append(Act(at, _event(one.event)))
    if not built:
        # It waited for its time then, and nothing was decided.
        found.insert(1, Act(started, words.BuildsReady()))
    return sorted(found, key=lambda act: act.at)


def _answers(decided: Sequence[Decided]) -> dict[int, tuple[Answer, ...]]:
    found: dict[int, tuple[Answer, ...]] = {}
    wave, since = 0, None
    for one in decided:
        if one.kind == "await_approval":
            wave, since = one.wave, one.at
            found.setdefault(wave, ())
        elif one.by_person and one.event["kind"] in _ANSWERS and since is not None:
            after_s = (one.at - since).total_seconds()
            found[wave] += (Answer(after_s, _event(one.event)),)
    return found


def _happened(one: Decided, started: float) -> Happened:
    bad = [gate["text"] for gate in one.evidence if gate["verdict"] != "pass"]
    why = one.reason if one.by_person else "; ".join(bad[:MOST_WHY])
    return Happened(one.at.timestamp() - started, one.kind, one.wave, why)


def _really(record: Record, row: RolloutRow, kept: _Kept) -> Told:
    entered = {
        part.device: {one.after for one in kept.moves.get(part.id, [])} for part in kept.parts
    }
    counts = Counter(part.state.value for part in kept.parts)
    halted_at_s, halted_why = first_halt(record.happened)
    return Told(
        decisions=record.happened,
        state=record.state,
        reason=row.state_reason,
        halted_at_s=halted_at_s,
        halted_why=halted_why,
        duration_s=record.ended_s,
        offered=sum(E.OFFERED in states for states in entered.values()),
        ran=tuple(sorted(device for device, states in entered.items() if states & RAN_IT)),
        outcomes=dict(sorted(counts.items())),
    )
