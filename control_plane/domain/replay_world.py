"""A rollout's devices in memory: carries decisions out as the store does; changes, but no I/O."""

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from agent.protocol.words import ExecutionState
from control_plane.domain.gates import Group
from control_plane.domain.measured import Measured
from control_plane.domain.replay_record import Course, Trial
from control_plane.domain.rollout import IN_FLIGHT, TERMINAL, WITHDRAWN, RolloutSpec, moves_forward
from control_plane.domain.rollout_view import (
    Decision,
    EndWave,
    Offer,
    Room,
    SendBack,
    TimeOut,
    Withdraw,
)

E = ExecutionState
RAN_IT = frozenset({E.ACTIVATING, E.SOAKING, E.SUCCEEDED})
_MAY_RUN_IT = RAN_IT | {E.TIMED_OUT}


@dataclass
class Part:
    """One device's part; times in Unix seconds."""

    device: str
    blueprint: str
    wave: int
    position: int
    courses: tuple[Course, ...]
    """One an offer, the last for all that follow."""
    place: int = 0
    """In the queue of its wave."""
    can_return: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    state: ExecutionState = E.QUEUED
    offered_at: float = 0.0
    changed_at: float = 0.0
    offers: int = 0
    """Grows with each offer and withdrawal: what is said of an older one does not count."""
    counted: Mapping[str, Measured] = field(default_factory=dict)
    to_return: bool = False
    ran: bool = False
    times: int = 0
    """How many offers it got."""
    moves: int = 0

    @property
    def course(self) -> Course:
        """What it does after its newest offer."""
        return self.courses[min(max(0, self.times - 1), len(self.courses) - 1)]


@dataclass(frozen=True)
class Said:
    """Something that a device says after its offer."""

    part: Part
    offer: int
    what: ExecutionState | Trial | None
    """A step, a trial; None: it is back on what it ran before."""


class World:
    """Every device of one rollout, and what they will say."""

    def __init__(self, spec: RolloutSpec, parts: Sequence[Part]) -> None:
        self.spec = spec
        self.parts = parts
        self._counts: dict[tuple[int, str], dict[ExecutionState, int]] = {}
        self._measured: dict[tuple[int, str], dict[str, Measured]] = {}
        self._coming: list[tuple[float, int, Said]] = []
        self._number = 0
        self._due: list[tuple[float, int, Part, int]] = []
        """When parts are overdue, the earliest first; those that have moved since do not count."""
        self._flying: dict[str, Part] = {}
        self._queues: dict[int, list[Part]] = {}
        self._heads: dict[int, int] = {}
        """Before this place in its queue nobody waits."""
        for part in sorted(parts, key=lambda one: (one.wave, one.position)):
            counts = self._counts.setdefault((part.wave, part.blueprint), {})
            counts[E.QUEUED] = counts.get(E.QUEUED, 0) + 1
            queue = self._queues.setdefault(part.wave, [])
            part.place = len(queue)
            queue.append(part)

    # --- what the machine sees ----------------------------------------------------------------

    @property
    def groups(self) -> tuple[Group, ...]:
        """The tallies as they stand."""
        return tuple(
            Group(*key, dict(self._counts[key]), dict(self._measured.get(key, {})))
            for key in sorted(self._counts)
        )

    @property
    def flying(self) -> Iterable[Part]:
        """The parts between offer and answer."""
        return self._flying.values()

    @property
    def to_return(self) -> int:
        """How many were ordered back and have not said that they are."""
        return sum(part.to_return for part in self.parts)

    def overdue(self, now: float) -> list[Part]:
        """Return the parts that a TimeOut would count now."""
        if now <= self.next_due():
            return []
        return [part for part in self.flying if now > self._due_at(part)]

    def next_due(self) -> float:
        """Return when the next part is overdue, unless it says something before."""
        while self._due and self._due[0][3] != self._due[0][2].moves:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else math.inf

    def _due_at(self, part: Part) -> float:
        limits = self.spec.timeouts
        seen = max(part.changed_at, part.offered_at + part.course.sign_s)
        in_step = part.changed_at + limits.steps.get(part.state, math.inf)
        return min(part.offered_at + limits.execution_s, seen + limits.silent_s, in_step)

    def rooms(self, halted: frozenset[str]) -> tuple[Room, ...] | None:
        """Return how many of each wave the disruption budgets allow; None: there are none."""
        if not self.spec.budgets:
            return None
        return tuple(
            Room(len(list(self._allowed(wave, halted))), text="a disruption budget is used up")
            for wave in range(len(self.spec.waves))
        )

    # --- what is decided ----------------------------------------------------------------------

    def carry_out(self, decision: Decision, now: float) -> None:
        """Do what was decided."""
        match decision:
            case Offer(wave, n, halted):
                for part in self._first(n, self._allowed(wave, halted)):
                    self._offer(part, now)
            case Withdraw(for_good, blueprint):
                self._withdraw(now, blueprint, for_good=for_good)
            case TimeOut():
                self._move_all(self.overdue(now), E.TIMED_OUT, now)
            case EndWave(wave, halted):
                left = [p for p in self.parts if p.wave == wave and p.blueprint not in halted]
                self._move_all([p for p in left if p.state not in TERMINAL], E.TIMED_OUT, now)
            case SendBack(blueprint=blueprint):
                self._send_back(now, blueprint)
            case _:
                pass

    def take_away(self, part: Part, becomes: ExecutionState, now: float) -> None:
        """Take a device out for reasons outside the rollout."""
        if part.state not in TERMINAL:
            self._move(part, becomes, now)

    def _allowed(self, wave: int, halted: frozenset[str]) -> Iterator[Part]:
        """Yield queued parts of a wave in their order, as far as the budgets go."""
        used: dict[tuple[str, str], int] = {}
        for part in self.flying if self.spec.budgets else ():
            self._use(used, part)
        queue, head = self._queues.get(wave, []), self._heads.get(wave, 0)
        while head < len(queue) and queue[head].state is not E.QUEUED:
            head += 1
        self._heads[wave] = head
        for part in islice(queue, head, None):
            if part.state is not E.QUEUED or part.blueprint in halted:
                continue
            if all(
                used.get((budget.label, part.labels.get(budget.label, "")), 0) < budget.max
                for budget in self.spec.budgets
                if budget.label in part.labels
            ):
                self._use(used, part)
                yield part

    def _use(self, used: dict[tuple[str, str], int], part: Part) -> None:
        for budget in self.spec.budgets:
            key = (budget.label, part.labels.get(budget.label, ""))
            used[key] = used.get(key, 0) + 1

    def _first(self, n: int, parts: Iterable[Part]) -> list[Part]:
        return list(islice(parts, n))

    def _offer(self, part: Part, now: float) -> None:
        part.offered_at, part.offers, part.times = now, part.offers + 1, part.times + 1
        self._move(part, E.OFFERED, now)
        for trial in part.course.trials:
            self._will_say(now + trial.at_s, part, trial)
        for after_s, state in part.course.steps:
            self._will_say(now + after_s, part, state)

    def _withdraw(self, now: float, blueprint: str, *, for_good: bool) -> None:
        mine = [part for part in self.parts if blueprint in ("", part.blueprint)]
        if for_good:
            self._move_all([part for part in mine if part.state not in TERMINAL], E.CANCELED, now)
            return
        for part in mine:
            if part.state is E.OFFERED:
                self._move(part, E.QUEUED, now)
                part.offers += 1

    def _send_back(self, now: float, blueprint: str) -> None:
        for part in self.parts:
            if part.state in _MAY_RUN_IT and part.can_return and blueprint in ("", part.blueprint):
                part.to_return = True
                self._will_say(now + (part.course.returned_s or 0.0), part, None)
        self._withdraw(now, blueprint, for_good=True)

    # --- what devices say ---------------------------------------------------------------------

    def next_word(self) -> float:
        """Return when a device says something next; infinite: never."""
        return self._coming[0][0] if self._coming else math.inf

    def hear(self) -> None:
        """Apply the next thing that a device says."""
        now, _, said = heapq.heappop(self._coming)
        part = said.part
        if said.what is None:
            part.to_return = False
        elif said.offer == part.offers and part.state is not E.QUEUED:
            if isinstance(said.what, Trial):
                if part.state not in WITHDRAWN:
                    self._measure(part, said.what)
            elif moves_forward(part.state, said.what):
                self._move(part, said.what, now)

    def _will_say(self, at: float, part: Part, what: ExecutionState | Trial | None) -> None:
        self._number += 1
        heapq.heappush(self._coming, (at, self._number, Said(part, part.offers, what)))

    def _measure(self, part: Part, trial: Trial) -> None:
        sums = self._measured.setdefault((part.wave, part.blueprint), {})
        for name, one in part.counted.items():
            sums[name] = sums[name].since(one)
        for name, one in trial.added.items():
            sums[name] = sums.get(name, Measured()).merged(one)
        part.counted = trial.added

    def _move_all(self, parts: Iterable[Part], becomes: ExecutionState, now: float) -> None:
        for part in parts:
            self._move(part, becomes, now)

    def _move(self, part: Part, becomes: ExecutionState, now: float) -> None:
        counts = self._counts[part.wave, part.blueprint]
        counts[part.state] -= 1
        if not counts[part.state]:
            del counts[part.state]
        counts[becomes] = counts.get(becomes, 0) + 1
        part.state, part.changed_at, part.moves = becomes, now, part.moves + 1
        part.ran = part.ran or becomes in RAN_IT
        if becomes in IN_FLIGHT:
            self._flying[part.device] = part
            self._number += 1
            heapq.heappush(self._due, (self._due_at(part), self._number, part, part.moves))
        else:
            self._flying.pop(part.device, None)
        if becomes is E.QUEUED:
            self._heads[part.wave] = min(self._heads.get(part.wave, 0), part.place)
