"""PURE: what a simulated device is made of: its state, what can happen to it, what it then does."""

from enum import StrEnum
from typing import NamedTuple

import msgspec

from agent.protocol.messages import Bench, BundleRef, Event, Hardware, Order
from agent.protocol.words import ExecutionState, Reason
from control_plane.local.fleet_simulator.draws import Draws
from control_plane.local.fleet_simulator.profile import Spec


class Moment(NamedTuple):
    """One reading of both clocks: Unix seconds, and seconds of a clock that never jumps."""

    wall: float
    steady: float


class Traits(NamedTuple):
    """What never changes about a device."""

    name: str
    blueprint: str
    hardware: Hardware
    speed: float
    """Its time per token over the profile's."""
    spec: Spec
    draws: Draws


# --- state ----------------------------------------------------------------------------------


class Value(msgspec.Struct, frozen=True):
    """A value: compared by content, never changed."""


class Outcome(Value, frozen=True):
    """How the newest finished order ended, to tell it again."""

    generation: int
    execution: str
    state: ExecutionState
    reason: Reason
    digest: str


class Standing(Value, frozen=True):
    """What holds whatever the device is doing; kept over runs of the simulator."""

    generation: int = 0
    good: BundleRef | None = None
    previous: BundleRef | None = None
    floors: dict[str, int] = {}
    outcome: Outcome | None = None
    refused: str = ""


class Stage(StrEnum):
    """What is under way."""

    VERIFYING = "verifying"
    DOWNLOADING = "downloading"
    WAITING = "waiting"
    """Staged, and its activation window is not open."""
    BENCHMARKING = "benchmarking"
    HOLDING = "holding"
    ACTIVATING = "activating"
    SOAKING = "soaking"
    REVERTING = "reverting"


class Work(Value, frozen=True):
    """An order being carried out."""

    stage: Stage
    order: Order
    due: float | None
    """Steady time at which the step ends; none: it waits for the line, or for real bytes."""
    tries: int = 1
    silenced: bool = False
    """It fell silent in this step once; it does not again."""
    reason: Reason = Reason.NONE
    """Why it turns back."""
    waiting: Order | None = None


class Kept(Value, frozen=True):
    """A report that nobody has acknowledged yet."""

    seq: int
    channel: str
    message: bytes
    says: str
    """For the record: a state and its reason, or a verdict."""


class Device(Value, frozen=True):
    """One simulated device."""

    boot: int
    born: float
    standing: Standing = Standing()
    work: Work | None = None
    seq: int = 0
    kept: tuple[Kept, ...] = ()
    connected: bool = False
    asleep: bool = False
    """It fell silent: it does nothing until it comes back."""
    beat_at: float = 0.0
    resend_at: float = 0.0
    quiet_until: float = 0.0
    """The control plane asked for patience: no signs of life and no repeats until then."""
    line_at: float = 0.0
    """When the newest message of ours has left the line: the next one does not overtake it."""
    said: int = 0
    """Messages so far; numbers the draws of the line."""


# --- events ---------------------------------------------------------------------------------


class Came(Value, frozen=True):
    """The broker took us and our subscription."""


class Went(Value, frozen=True):
    """The connection is gone."""


class Ordered(Value, frozen=True):
    """An order arrived; `envelope` is the SHA-256 of what carried it."""

    order: Order
    envelope: str


class Acked(Value, frozen=True):
    """Reports are committed."""

    reports: list[tuple[int, int]]


class Told(Value, frozen=True):
    """A command of the control plane."""

    name: str
    seconds: float = 0.0


class Fetched(Value, frozen=True):
    """The real download of this generation has ended; `reason` says why badly."""

    generation: int
    reason: Reason = Reason.NONE


class Woke(Value, frozen=True):
    """The time of `wake_at` has come."""


Happening = Came | Went | Ordered | Acked | Told | Fetched | Woke


# --- effects --------------------------------------------------------------------------------


class Say(Value, frozen=True):
    """Publish a message at a steady time, if there is a connection then."""

    at: float
    channel: str
    message: bytes
    qos: int = 1
    report: Event | Bench | None = None
    """What it says, when it says it for the first time."""


class Fetch(Value, frozen=True):
    """Download a bundle for real; `Fetched` answers."""

    order: Order


class Vanish(Value, frozen=True):
    """Be gone without a word for so many seconds; 0: for good."""

    seconds: float


Effect = Say | Fetch | Vanish
Step = tuple[Device, tuple[Effect, ...]]
