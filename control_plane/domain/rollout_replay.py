"""What would have happened to a recorded rollout under another policy; pure.

The same `advance()` that decided then decides again, over devices that do what they did: so long
after its offer each one answers as it answered. Ticks come in the scheduler's rhythm, but only
where something can have changed. People do what they did: words on a waiting wave come as long
after it began to wait, other acts at their time. What is outside is not replayed: other rollouts'
priorities, activation windows (their waits are part of a device's course), devices that joined.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from control_plane.domain import selector
from control_plane.domain.errors import FlotillaError
from control_plane.domain.gates import Gate, Verdict
from control_plane.domain.pace import MINUTE_S
from control_plane.domain.replay_record import Happened, Known, Record, Unknown, courses
from control_plane.domain.replay_world import Part, World
from control_plane.domain.rollout import ENDED, RolloutSpec, RolloutState
from control_plane.domain.rollout_machine import advance
from control_plane.domain.rollout_verbs import kind_of
from control_plane.domain.rollout_view import (
    Approve,
    AwaitApproval,
    BuildsFailed,
    BuildsReady,
    Decision,
    Event,
    Hold,
    Machine,
    Tick,
    View,
)
from control_plane.domain.windows import Opening, opening

MAX_STEPS = 200_000
"""More decisions than any rollout makes: beyond it the replay is given up, and says so."""
MOST_WHY = 3
_A_MOMENT = 1e-4
_BUILDS = (BuildsReady, BuildsFailed)


@dataclass(frozen=True)
class Told:
    """What happened, in the record or in the replay; times in seconds after the start."""

    decisions: tuple[Happened, ...]
    state: str
    reason: str
    halted_at_s: float | None
    halted_why: str
    duration_s: float | None
    """None: it has not ended."""
    offered: int
    ran: tuple[str, ...]
    """Devices on which the version was active at some time: who was exposed."""
    outcomes: Mapping[str, int]


@dataclass(frozen=True)
class Replay:
    """What would have happened, and how much of it had to be guessed."""

    told: Told
    drawn: tuple[str, ...]
    """Devices that came to be offered it and whose answer the record does not have."""
    notes: tuple[str, ...]


def replay(record: Record, spec: RolloutSpec, unknown: Unknown, seed: int) -> Replay:
    """Replay a record under a policy.

    Raises:
        InvalidError: courses must be drawn and there is none to draw from.
    """
    run = Run(record, spec, unknown, seed)
    while run.go_on():
        pass
    return run.result()


def placed(record: Record, spec: RolloutSpec) -> list[tuple[Known, int, int]]:
    """Return each device's wave and position; under the waves of the record: as they were.

    Other waves cut the same order in other places; without a place a device is left out.
    """
    if spec.waves == record.spec.waves:
        return [(one, one.wave, one.position) for one in record.devices]
    left = sorted(record.devices, key=lambda one: (one.wave, one.position))
    total, taken = len(left), 0
    found: list[tuple[Known, int, int]] = []
    for index, wave in enumerate(spec.waves):
        shares = max(0, -(-total * (wave.percent or 0) // 100) - taken)
        mine = left[: shares if wave.count is None else wave.count]
        if wave.selector:
            wanted, now = selector.parse(wave.selector), _moment(record.started)
            mine = [
                one for one in left if one.facts and selector.matches(wanted, one.facts, now=now)
            ]
        names = {one.device for one in mine}
        left = [one for one in left if one.device not in names]
        taken += len(mine)
        found += [(one, index, position) for position, one in enumerate(mine)]
    return found


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _labels(one: Known) -> Mapping[str, str]:
    return {} if one.facts is None else one.facts.labels


class Run:
    """One replay on its way, from one moment at which something changes to the next."""

    def __init__(self, record: Record, spec: RolloutSpec, unknown: Unknown, seed: int) -> None:
        self.record, self.spec = record, spec
        drawn = courses(record, spec, unknown, seed)
        self.parts = [
            Part(
                one.device,
                one.blueprint,
                wave,
                position,
                drawn[one.device].courses,
                can_return=one.can_return,
                labels=_labels(one),
            )
            for one, wave, position in placed(record, spec)
        ]
        self.guessed = {name for name, one in drawn.items() if one.drawn}
        self.world = World(spec, self.parts)
        self.machine = Machine()
        self.now = record.started
        self.approvals: tuple[str, ...] = ()
        self.happened: list[Happened] = []
        self.last: Decision | None = None
        self.notes: list[str] = []
        by_name = {part.device: part for part in self.parts}
        self.gone = sorted(
            (one.gone_at, one.device, by_name[one.device], one.gone)
            for one in record.devices
            if one.gone_at is not None and one.device in by_name
        )
        self.acts: list[tuple[float, Event]] = [(act.at, act.event) for act in record.acts]
        self.steps = 0

    # --- time ---------------------------------------------------------------------------------

    def go_on(self) -> bool:
        """Let one moment pass; False: the rollout has ended, or nothing can change any more."""
        self._outside(self.now)
        self._settle()
        upcoming = self._next()
        if upcoming == math.inf or self.machine.state in ENDED:
            return False
        if self.steps > MAX_STEPS:
            self.notes.append(f"given up after {MAX_STEPS} decisions")
            return False
        self.now = self._tick_at(upcoming)
        return True

    def _tick_at(self, moment: float) -> float:
        """Return the first tick that is not before a moment, and after the last one."""
        start, every = self.record.started, self.record.tick_s
        number = math.ceil((moment - start) / every - _A_MOMENT)
        last = math.floor((self.now - start) / every + _A_MOMENT)
        return start + max(number, last + 1) * every

    def _next(self) -> float:
        """Return when something may change next."""
        times = [self.world.next_word(), *(at for at, _ in self.acts[:1])]
        times += [one[0] for one in self.gone[:1]]
        times += [at for at in self._deadlines() if at > self.now + _A_MOMENT]
        return min(times, default=math.inf)

    def _deadlines(self) -> list[float]:
        m, spec = self.machine, self.spec
        found = [at + spec.wave_soak_s(wave) for wave, at in enumerate(m.opened_at)]
        found += [at + MINUTE_S for at, _ in m.offered]
        found += [due for due in m.due_at if due is not None]
        found.append(self.world.next_due() + _A_MOMENT * 2)
        if m.state is RolloutState.REVERTING:
            found.append(m.reverting_at + spec.timeouts.silent_s)
        if spec.not_before is not None:
            found.append(spec.not_before)
        window = self._window()
        if window is not None:
            found += [window.opens_at, window.closes_at]
        return found

    def _window(self) -> Opening | None:
        asked = self.spec.windows.download
        return None if asked is None else opening(asked, self.now)

    # --- what comes from outside --------------------------------------------------------------

    def _outside(self, until: float) -> None:
        """Let everything happen that comes from outside, up to now, in its order."""
        while True:
            gone = self.gone[0][0] if self.gone else math.inf
            said = self.world.next_word()
            act = self.acts[0][0] if self.acts else math.inf
            first = min(gone, said, act)
            if first > until + _A_MOMENT or first == math.inf:
                return
            if first == gone:
                at, _, part, becomes = self.gone.pop(0)
                self.world.take_away(part, becomes, at)
            elif first == said:
                self.world.hear()
            else:
                at, event = self.acts.pop(0)
                self._person(event, at)

    def _person(self, event: Event, at: float) -> None:
        if isinstance(event, _BUILDS) and self.machine.state is not RolloutState.BUILDING:
            return
        try:
            self._step(event, at)
        except FlotillaError as error:
            kind, when = kind_of(event), at - self.record.started
            self.notes.append(f"{kind} after {when:.0f} s is left out: {error.message}")

    def _answers(self, wave: int) -> None:
        """Let people answer a wave that begins to wait, as they did; else they approve at once."""
        given = self.record.answers.get(wave)
        if given is not None:
            self.acts += [(self.now + one.after_s, one.event) for one in given]
        else:
            asked = self.spec.waves[wave].approval
            names = asked.of if asked is not None and asked.of else ()
            needed = 1 if asked is None else asked.needed
            who = [*names, *(f"person-{n}" for n in range(1, needed + 1))][:needed]
            self.acts += [(self.now, Approve(name)) for name in who]
            self.notes.append(f"wave {self.spec.waves[wave].name} is approved at once: nobody was")
        self.acts.sort(key=lambda act: act[0])

    # --- deciding -----------------------------------------------------------------------------

    def _settle(self) -> None:
        while self.machine.state not in ENDED and self.steps <= MAX_STEPS:
            if not self._step(Tick(), self.now):
                return
            self.steps += 1

    def _step(self, event: Event, now: float) -> bool:
        """Apply one event as rollout_tick.step does; False if nothing changed."""
        view = self._view(now)
        machine, decisions = advance(view, event, now)
        if isinstance(event, Tick) and machine == self.machine and self._nothing_new(decisions):
            return False
        if not isinstance(event, Tick | BuildsReady | BuildsFailed):
            self._keep(kind_of(event), max(0, self.machine.wave), "", now)
            self.last = None
            self.approvals += (event.who,) if isinstance(event, Approve) else ()
        before, self.machine = self.machine, machine
        for decision in decisions:
            wave = max(0, getattr(decision, "wave", before.wave))
            self._keep(kind_of(decision), wave, _why(decision), now)
            self.last = decision
            self.world.carry_out(decision, now)
            if isinstance(decision, AwaitApproval):
                self._answers(decision.wave)
        if machine.wave != before.wave:
            self.approvals = ()
        return True

    def _view(self, now: float) -> View:
        world = self.world
        view = View(
            self.spec,
            self.machine,
            world.groups,
            overdue=len(world.overdue(now)),
            download=self._window(),
            approvals=self.approvals,
            rooms=world.rooms(self.machine.halted),
        )
        if self.machine.state is RolloutState.REVERTING:
            view = replace(view, to_return=world.to_return)
        return view

    def _nothing_new(self, decisions: tuple[Decision, ...]) -> bool:
        if not decisions:
            return True
        first, last = decisions[0], self.last
        if not isinstance(first, Hold) or not isinstance(last, Hold) or first.wave != last.wave:
            return False
        return [_judged(gate) for gate in first.evidence] == [
            _judged(gate) for gate in last.evidence
        ]

    def _keep(self, kind: str, wave: int, why: str, now: float) -> None:
        self.happened.append(Happened(now - self.record.started, kind, wave, why))

    # --- telling ------------------------------------------------------------------------------

    def result(self) -> Replay:
        """Return what happened."""
        offered = [part for part in self.parts if part.times]
        state = self.machine.state
        outcomes = Counter(part.state.value for part in self.parts)
        ended = self.now - self.record.started if state in ENDED else None
        halted_at_s, halted_why = first_halt(self.happened)
        told = Told(
            decisions=tuple(self.happened),
            state=state.value,
            reason=self.machine.reason,
            halted_at_s=halted_at_s,
            halted_why=halted_why,
            duration_s=ended,
            offered=len(offered),
            ran=tuple(sorted(part.device for part in self.parts if part.ran)),
            outcomes=dict(sorted(outcomes.items())),
        )
        drawn = sorted(part.device for part in offered if part.device in self.guessed)
        return Replay(told, tuple(drawn), (*_limits(self.record, self.spec), *self.notes))


def first_halt(happened: Sequence[Happened]) -> tuple[float | None, str]:
    """Return when and why a gate stopped it first, of a list of decisions."""
    for one in happened:
        if one.kind in {"halt", "send_back"} and one.why:
            return one.at_s, one.why
    return None, ""


def _limits(record: Record, spec: RolloutSpec) -> list[str]:
    """Say what this replay cannot know."""
    found: list[str] = []
    if spec.waves != record.spec.waves:
        found.append("waves are cut anew from the order of the record; shares are of its devices")
    if spec.windows.activate != record.spec.windows.activate:
        found.append("activation windows are not replayed: devices wait as long as they waited")
    if spec.priority != record.spec.priority:
        found.append("other rollouts are not replayed, so priority changes nothing")
    if spec.dynamic or record.spec.dynamic:
        found.append("devices that joined are there from the start, and nobody joins later")
    if spec.trial != record.spec.trial or spec.max_tries != record.spec.max_tries:
        found.append("trials are not run again: each device measured what it measured")
    return found


def _why(decision: Decision) -> str:
    evidence: tuple[Gate, ...] = getattr(decision, "evidence", ())
    bad = [gate.text for gate in evidence if gate.verdict is not Verdict.PASS]
    more = f" and {len(bad) - MOST_WHY} more" if len(bad) > MOST_WHY else ""
    return "; ".join(bad[:MOST_WHY]) + more


def _judged(gate: Gate) -> tuple[str, str, str, str]:
    return gate.rule, gate.blueprint, gate.metric, gate.verdict.value
