"""What is known of a rollout that was: each device's course, what people did, what was decided.

Unknown courses are drawn from those of devices that answered, by a hash of seed and device, so
that the same question has the same answer; how many were drawn is always said.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256

from agent.protocol.words import ExecutionState, Reason
from control_plane.domain.device import DeviceFacts
from control_plane.domain.errors import InvalidError
from control_plane.domain.measured import ALREADY_RUNNING, FIRST_TRIALS, TRIALS, Measured
from control_plane.domain.rollout import FAILURES, TERMINAL, RolloutSpec
from control_plane.domain.rollout_view import Event

E = ExecutionState


class Unknown(StrEnum):
    """How devices answer of which the record has no answer."""

    SUCCEED = "succeed"
    FAIL = "fail"
    RATE = "rate"
    """As one of their blueprint that was tried, drawn at random with the seed."""


@dataclass(frozen=True)
class Trial:
    """One conclusive trial: when after the offer, and what it adds to the tallies."""

    at_s: float
    added: Mapping[str, Measured]
    ratios: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Ratio and lower bound of each paired metric, as the device judged them."""

    def regresses(self, tolerance: Mapping[str, float]) -> bool:
        """Return whether the device itself would have refused it (agent/verdict.py)."""
        return any(
            ratio > 1 + tolerance[name] and low > 1
            for name, (ratio, low) in self.ratios.items()
            if name in tolerance
        )


@dataclass(frozen=True)
class Course:
    """What a device did once it was offered the version; times in seconds after the offer."""

    steps: tuple[tuple[float, ExecutionState], ...] = ()
    trials: tuple[Trial, ...] = ()
    why: str = ""
    """The reason of its last step."""
    sign_s: float = math.inf
    """When it gave its last sign of life; infinite where silence was not what ended it."""
    known_s: float = 0.0
    """Of an unfinished course: so long it is known not to have answered."""
    returned_s: float | None = None
    """How long after the order back it said that it was back."""

    @property
    def end(self) -> ExecutionState | None:
        """How it ended; a device that fell silent ends as TIMED_OUT; None: not known."""
        if self.steps and self.steps[-1][1] in TERMINAL:
            return self.steps[-1][1]
        return E.TIMED_OUT if self.sign_s < math.inf else None


@dataclass(frozen=True)
class Known:
    """One device of the record."""

    device: str
    blueprint: str
    wave: int
    position: int
    course: Course | None = None
    """After its last offer; None: it was never offered it, or the offer was taken back."""
    waits: tuple[float, ...] = ()
    """How long each offer that was taken back had lain there, in seconds."""
    gone_at: float | None = None
    """When something outside the rollout took it away, in Unix seconds."""
    gone: ExecutionState = E.CANCELED
    can_return: bool = True
    facts: DeviceFacts | None = None


@dataclass(frozen=True)
class Happened:
    """One decision, or a person's act, and why."""

    at_s: float
    kind: str
    wave: int
    why: str = ""


@dataclass(frozen=True)
class Act:
    """Something that came from outside at a time, in Unix seconds."""

    at: float
    event: Event


@dataclass(frozen=True)
class Answer:
    """A person's word on a waiting wave, so long after it began to wait."""

    after_s: float
    event: Event


@dataclass(frozen=True)
class Record:
    """A rollout as it was."""

    spec: RolloutSpec
    started: float
    devices: tuple[Known, ...]
    acts: tuple[Act, ...]
    answers: Mapping[int, tuple[Answer, ...]]
    """On each wave that waited for people."""
    happened: tuple[Happened, ...]
    state: str
    ended_s: float | None = None
    tick_s: float = 1.0


@dataclass(frozen=True)
class Drawn:
    """A device's courses in the replay, one an offer, the last for all that follow."""

    courses: tuple[Course, ...]
    drawn: bool = False
    """Whether the record has no answer of it."""


def courses(record: Record, spec: RolloutSpec, unknown: Unknown, seed: int) -> dict[str, Drawn]:
    """Return how each device answers under a policy.

    Raises:
        InvalidError: no device has answered, so that there is no rate to draw from.
    """
    known = {one.device: _judged(one.course, record.spec, spec) for one in record.devices}
    pool = _Pool(record.devices, known, unknown, seed)
    found: dict[str, Drawn] = {}
    for one in record.devices:
        last = known[one.device]
        drawn = last is None or last.end is None
        if last is None or last.end is None:
            last = _continued(last, pool.draw(one), record.tick_s)
        early = (_continued(Course(known_s=wait), last, record.tick_s) for wait in one.waits)
        found[one.device] = Drawn((*early, last), drawn=drawn)
    return found


def _judged(course: Course | None, old: RolloutSpec, new: RolloutSpec) -> Course | None:
    """Return a course as the device would have judged its own trial under other tolerances."""
    if course is None or old.gates.tolerance == new.gates.tolerance:
        return course
    for trial in course.trials:
        if trial.regresses(new.gates.tolerance):
            before = tuple(step for step in course.steps if step[0] < trial.at_s)
            upto = tuple(one for one in course.trials if one.at_s <= trial.at_s)
            end = (trial.at_s, E.ROLLED_BACK)
            return replace(
                course, steps=(*before, end), trials=upto, why=Reason.TRIAL_REGRESSION.value
            )
    if course.end is E.ROLLED_BACK and course.why == Reason.TRIAL_REGRESSION.value:
        # It would have gone on; nobody knows to what end.
        at = course.steps[-1][0]
        return replace(course, steps=course.steps[:-1], known_s=at, why="")
    return course


def _continued(course: Course | None, drawn: Course, tick_s: float) -> Course:
    """Return an unfinished course that goes on as another did, not before it is known to."""
    if course is None:
        return drawn
    soonest = course.known_s + tick_s
    past = {state for _, state in course.steps}
    later = tuple((max(at, soonest), state) for at, state in drawn.steps if state not in past)
    trials = course.trials or tuple(
        replace(trial, at_s=max(trial.at_s, soonest)) for trial in drawn.trials
    )
    return replace(drawn, steps=(*course.steps, *later), trials=trials)


class _Pool:
    """Courses to draw from, by blueprint; where a blueprint has none, those of all."""

    def __init__(
        self,
        devices: Sequence[Known],
        known: Mapping[str, Course | None],
        unknown: Unknown,
        seed: int,
    ) -> None:
        self._unknown, self._seed = unknown, seed
        self._by: dict[str, list[Course]] = {}
        for one in devices:
            course = known[one.device]
            if course is not None and course.end is not None and self._fits(course.end):
                self._by.setdefault(one.blueprint, []).append(course)
                self._by.setdefault("", []).append(course)

    def draw(self, one: Known) -> Course:
        """Return a course for a device whose own is not known."""
        among = self._by.get(one.blueprint) or self._by.get("")
        if among:
            return among[self._number(one.device) % len(among)]
        match self._unknown:
            case Unknown.SUCCEED:
                trial = Trial(0.0, {TRIALS: Measured(n=1), FIRST_TRIALS: Measured(n=1)})
                return Course(((0.0, E.SUCCEEDED),), (trial,))
            case Unknown.FAIL:
                return Course(((0.0, E.FAILED),))
        raise InvalidError(
            "no device has answered yet, so there is no rate to draw from: say succeed or fail",
            field="unknown",
        )

    def _fits(self, end: ExecutionState) -> bool:
        if self._unknown is Unknown.SUCCEED:
            return end is E.SUCCEEDED
        return self._unknown is Unknown.RATE or end in FAILURES

    def _number(self, device: str) -> int:
        return int.from_bytes(sha256(f"{self._seed}\0{device}".encode()).digest()[:8], "big")


def exempt() -> Mapping[str, Measured]:
    """Return what a device that ran it already adds to the tallies."""
    return {ALREADY_RUNNING: Measured(n=1)}
