"""A rollout as it is asked for: waves, pace, gates, and the words for its states."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agent.protocol.words import ExecutionState
from control_plane.domain.windows import Window


class RolloutState(StrEnum):
    """Where a rollout stands."""

    DRAFT = "DRAFT"
    BUILDING = "BUILDING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    SCHEDULED = "SCHEDULED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    HALTED = "HALTED"
    REVERTING = "REVERTING"
    SUCCEEDED = "SUCCEEDED"
    REVERTED = "REVERTED"
    ABORTED = "ABORTED"


ENDED = frozenset({RolloutState.SUCCEEDED, RolloutState.REVERTED, RolloutState.ABORTED})

# The order of one device's part: forward only, gaps allowed.
STEPS = (
    ExecutionState.QUEUED,
    ExecutionState.OFFERED,
    ExecutionState.DOWNLOADING,
    ExecutionState.STAGED,
    ExecutionState.BENCHMARKING,
    ExecutionState.ACTIVATING,
    ExecutionState.SOAKING,
)
IN_FLIGHT = frozenset(STEPS[1:])
TERMINAL = frozenset(ExecutionState) - frozenset(STEPS)
FAILURES = frozenset({ExecutionState.ROLLED_BACK, ExecutionState.FAILED, ExecutionState.TIMED_OUT})
WITHDRAWN = frozenset({ExecutionState.CANCELED, ExecutionState.SUPERSEDED})
"""Taken out of the rollout by us or by a newer one: no answer is expected, none is counted."""


class OnBreach(StrEnum):
    """What a tripped gate does."""

    HALT = "halt"
    REVERT = "revert"


class BreachScope(StrEnum):
    """Whom a tripped gate stops."""

    ROLLOUT = "rollout"
    BLUEPRINT = "blueprint"


@dataclass(frozen=True)
class Growth:
    """A pace that grows with its successes: the exponential rate of AWS IoT Jobs.

    After each `every` successes the offers a minute are multiplied by `factor`, up to `limit`.
    Source: AWS IoT Developer Guide, "Job rollout, scheduling, and abort configurations"
    (exponentialRate: baseRatePerMinute, incrementFactor, numberOfSucceededThings).
    """

    factor: float
    every: int
    limit: int


@dataclass(frozen=True)
class Pace:
    """How many devices may be between offer and answer, and how many offers a minute."""

    max_in_flight: int = 100
    per_minute: int = 600
    growth: Growth | None = None


@dataclass(frozen=True)
class Approval:
    """How many people must let a wave open, and who may; nobody named: everybody may."""

    needed: int = 1
    of: tuple[str, ...] = ()


@dataclass(frozen=True)
class WaveSpec:
    """Devices that get it together: by `count`, by `percent` of all that match, or by `selector`.

    A selector takes all devices of the rollout that match it and are in no earlier wave.
    `timeout_s` is for the whole wave, from its opening; `pace` replaces the rollout's own.
    """

    name: str
    count: int | None = None
    percent: int | None = None
    soak_s: float | None = None
    approval: Approval | None = None
    selector: str = ""
    timeout_s: float | None = None
    pace: Pace | None = None


@dataclass(frozen=True)
class Budget:
    """A disruption budget: at most `max` devices in flight that share a value of the label.

    Devices of other unfinished rollouts count too: a site does not care who disturbs it.
    """

    label: str
    max: int


@dataclass(frozen=True)
class Windows:
    """When offers may be made, and when devices may try and switch; None: at any time."""

    download: Window | None = None
    activate: Window | None = None


@dataclass(frozen=True)
class GatePolicy:
    """What must hold, per blueprint, before the next wave.

    `max_failures` is an absolute cap; `max_failure_rate` is a share of the answers, if one is set.
    """

    min_answered: float = 1.0
    max_failures: int = 0
    tolerance: Mapping[str, float] = field(
        default_factory=lambda: {
            "token_ms": 0.10,
            "first_token_ms": 0.15,
            "memory_mb": 0.20,
            "load_ms": 0.50,
        }
    )
    scope: BreachScope = BreachScope.ROLLOUT
    max_failure_rate: float | None = None


@dataclass(frozen=True)
class TrialSpec:
    """How each device measures candidate against incumbent."""

    min_blocks: int = 5
    max_blocks: int = 12
    tokens: int = 32
    retry_s: float = 300.0


@dataclass(frozen=True)
class Timeouts:
    """After which silence, after how long in a step, and in all, a device counts as TIMED_OUT."""

    silent_s: float = 3600.0
    execution_s: float = 6 * 3600.0
    steps: Mapping[ExecutionState, float] = field(default_factory=dict)


LOWEST_PRIORITY, DEFAULT_PRIORITY, HIGHEST_PRIORITY = 0, 50, 100


@dataclass(frozen=True)
class RolloutSpec:
    """One rollout, as its document says; durations in seconds, times in Unix seconds."""

    name: str
    model: str
    version: str
    waves: tuple[WaveSpec, ...]
    selector: str = ""
    soak_s: float = 30.0
    pace: Pace = Pace()
    gates: GatePolicy = field(default_factory=GatePolicy)
    trial: TrialSpec = TrialSpec()
    timeouts: Timeouts = Timeouts()
    not_before: float | None = None
    on_breach: OnBreach = OnBreach.HALT
    max_tries: int = 3
    budgets: tuple[Budget, ...] = ()
    windows: Windows = Windows()
    priority: int = DEFAULT_PRIORITY
    """A device with an open part in a rollout of higher priority is not offered this one."""
    dynamic: bool = False
    """Devices that match later join the last wave, while the rollout is unfinished."""

    def wave_pace(self, wave: int) -> Pace:
        """Return how fast this wave may go; before the first one opens, the first one's."""
        own = self.waves[max(0, wave)].pace
        return self.pace if own is None else own

    def wave_soak_s(self, wave: int) -> float:
        """Return how long a device of this wave must run it before it confirms."""
        own = self.waves[wave].soak_s
        return self.soak_s if own is None else own


def moves_forward(before: ExecutionState, after: ExecutionState) -> bool:
    """Return whether a device's part may go from one state to the other."""
    if before in TERMINAL:
        return False
    return after in TERMINAL or STEPS.index(after) > STEPS.index(before)
