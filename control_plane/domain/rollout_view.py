"""What the rollout machine is told and what it answers: events, decisions, machine, view."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from agent.protocol.words import ExecutionState
from control_plane.domain.gates import Gate, Group, Seen
from control_plane.domain.pace import Offered
from control_plane.domain.rollout import RolloutSpec, RolloutState
from control_plane.domain.windows import Opening

# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """A person starts it."""


@dataclass(frozen=True)
class BuildsReady:
    """Every bundle that the plan needs exists."""


@dataclass(frozen=True)
class BuildsFailed:
    """No bundle that the plan needs could be built."""

    why: str


@dataclass(frozen=True)
class Approve:
    """A person lets the waiting wave open, as far as it is theirs to say."""

    who: str = ""


@dataclass(frozen=True)
class Deny:
    """A person says no to the waiting wave, and so to the rollout; `who` and `why` are shown."""

    who: str
    why: str


@dataclass(frozen=True)
class Tick:
    """Time has passed, or tallies have changed."""


@dataclass(frozen=True)
class Pause:
    """A person stops it."""


@dataclass(frozen=True)
class Resume:
    """A person goes on; after a halt, knowing the failures so far."""


@dataclass(frozen=True)
class Promote:
    """A person opens the next wave although its gates hold."""


@dataclass(frozen=True)
class Abort:
    """A person gives it up: devices keep what they run, or go back.

    `why` is shown as the rollout's reason, where it was ended for a reason outside it.
    """

    mode: Literal["keep", "revert"] = "keep"
    why: str = ""


@dataclass(frozen=True)
class Revert:
    """A person takes every device back."""


Event = (
    Start
    | BuildsReady
    | BuildsFailed
    | Approve
    | Deny
    | Tick
    | Pause
    | Resume
    | Promote
    | Abort
    | Revert
)

# --- decisions --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RequestBuilds:
    """Ask for the bundles that are missing."""


@dataclass(frozen=True)
class OpenWave:
    """Let this wave's devices be offered it."""

    wave: int
    evidence: tuple[Gate, ...] = ()


@dataclass(frozen=True)
class AwaitApproval:
    """This wave waits for a person."""

    wave: int
    evidence: tuple[Gate, ...] = ()


@dataclass(frozen=True)
class Offer:
    """Offer it to the next n queued devices of a wave, but for halted blueprints.

    With budgets or priorities only so many are looked at, from the position `start` on.
    """

    wave: int
    n: int
    halted: frozenset[str] = frozenset()
    start: int = 0


@dataclass(frozen=True)
class Withdraw:
    """Take back what no device has begun: into the queue again, or for good with all the rest."""

    for_good: bool = False
    blueprint: str = ""


@dataclass(frozen=True)
class TimeOut:
    """Count devices without a sign since `silent_before`, or offered before, as TIMED_OUT.

    Also those in a step since before the time that `steps` names for it.
    """

    silent_before: float
    offered_before: float
    steps: Mapping[ExecutionState, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EndWave:
    """A wave's time is over: whoever has not answered, queued or in flight, is TIMED_OUT."""

    wave: int
    halted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class NextWindow:
    """Order again, for the next activation window, whoever let the one in its order pass."""

    closed_before: float


@dataclass(frozen=True)
class Join:
    """Devices that match since changing after the watermark join the last wave."""

    n: int


@dataclass(frozen=True)
class Hold:
    """A wave is not good enough yet."""

    wave: int
    evidence: tuple[Gate, ...]


@dataclass(frozen=True)
class Halt:
    """A gate stops the rollout, or one blueprint of it."""

    wave: int
    evidence: tuple[Gate, ...]
    blueprint: str = ""


@dataclass(frozen=True)
class SendBack:
    """Order every device that runs it back to what it ran before; of one blueprint, if named."""

    evidence: tuple[Gate, ...] = ()
    blueprint: str = ""


@dataclass(frozen=True)
class Succeed:
    """Every device answered and every gate holds, or a person accepts it."""

    evidence: tuple[Gate, ...]


@dataclass(frozen=True)
class EndRevert:
    """The devices are back; `unreachable` ones have their order waiting."""

    unreachable: int


@dataclass(frozen=True)
class GiveWay:
    """A newer rollout has taken over the devices that were left."""


Decision = (
    RequestBuilds
    | OpenWave
    | AwaitApproval
    | Offer
    | Withdraw
    | TimeOut
    | EndWave
    | NextWindow
    | Join
    | Hold
    | Halt
    | SendBack
    | Succeed
    | EndRevert
    | GiveWay
)

# --- the view ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What a rollout remembers between events; times in Unix seconds."""

    state: RolloutState = RolloutState.DRAFT
    wave: int = -1
    """The newest wave that is open; -1: none."""
    opened_at: tuple[float, ...] = ()
    resumes: RolloutState = RolloutState.RUNNING
    """Where a resume leads from PAUSED or HALTED."""
    acknowledged: Mapping[str, int] = field(default_factory=dict)
    """Failures per blueprint that a person has seen when resuming."""
    seen: Mapping[str, Seen] = field(default_factory=dict)
    """The rest that a person has seen of each blueprint: only what came since may halt."""
    halted: frozenset[str] = frozenset()
    offered: Offered = ()
    """Offers of the last minute, for the pace."""
    reverting_at: float = 0.0
    reason: str = ""
    sent_back: frozenset[str] = frozenset()
    """Halted blueprints whose devices were ordered back: they never come in again."""
    due_at: tuple[float | None, ...] = ()
    """When each open wave is over for whoever has not answered."""
    stopped_at: float | None = None
    """Since when nothing may be offered; a wave's time stands still meanwhile."""


@dataclass(frozen=True)
class Room:
    """How many queued devices of a wave could be offered it: budgets and priorities allow them.

    Found among those looked at from the position `start` on; `text` says what the others wait for.
    """

    n: int
    start: int = 0
    text: str = ""


@dataclass(frozen=True)
class View:
    """Everything that advance() may know; stored with each decision, to replay it."""

    spec: RolloutSpec
    machine: Machine
    groups: tuple[Group, ...] = ()
    overdue: int = 0
    """Devices in flight that a TimeOut would count."""
    to_return: int = 0
    """Devices ordered back that do not say they are."""
    download: Opening | None = None
    """The download window that is open now, else the next one; None: none is asked for."""
    lapsed: int = 0
    """Devices whose activation window has passed before they began the trial."""
    approvals: tuple[str, ...] = ()
    """Who has approved the next wave as it stands."""
    authors: tuple[str, ...] = ()
    """Who wrote it, and so may not approve it."""
    rooms: tuple[Room, ...] | None = None
    """By wave; None: neither budgets nor priorities stand in the way."""
    newcomers: int = 0
    """Devices that a Join would take in."""

    def queued(self, wave: int, without: frozenset[str] = frozenset()) -> int:
        return sum(
            group.of(ExecutionState.QUEUED)
            for group in self.groups
            if group.wave == wave and group.blueprint not in without
        )

    @property
    def in_flight(self) -> int:
        return sum(group.in_flight for group in self.groups)

    def in_flight_of(self, wave: int, without: frozenset[str] = frozenset()) -> int:
        return sum(
            group.in_flight
            for group in self.groups
            if group.wave == wave and group.blueprint not in without
        )

    def successes(self, wave: int | None) -> int:
        """Return how many confirmed it, in one wave or in all."""
        return sum(
            group.of(ExecutionState.SUCCEEDED)
            for group in self.groups
            if wave is None or group.wave == wave
        )
