"""What the machine is made of: the states of a device, its events, the effects it asks for.

| state        | what is under way                                | the active slot holds |
|--------------|--------------------------------------------------|-----------------------|
| Idle         | nothing                                          | last known good       |
| Verifying    | the manifest is fetched and judged               | last known good       |
| Downloading  | files come in and are staged in the spare slot   | last known good       |
| Staged       | the spare slot is read back and compared         | last known good       |
| Waiting      | the activation window is not open                | last known good       |
| Benchmarking | candidate against incumbent, in a child          | last known good       |
| Holding      | the trial was inconclusive; it is repeated later | last known good       |
| Activating   | the switch to the candidate                      | either of the two     |
| Soaking      | the candidate runs on probation                  | candidate             |
| Reverting    | the switch back                                  | either of the two     |

All of it is plain data (msgspec structs rather than dataclasses, since the journal stores them).
"""

from typing import NamedTuple

import msgspec

from agent.protocol.manifest import Manifest
from agent.protocol.messages import BundleRef, Metric, Order
from agent.protocol.words import ExecutionState, Reason, Verdict


class Moment(NamedTuple):
    """One reading of both clocks."""

    wall: float
    """Unix seconds: may jump; only for what people wrote (expiry, activation windows)."""
    steady: float
    """Seconds of a clock that never jumps, and starts anew with each start of the agent."""


class Value(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A value: compared by content, never changed."""


# --- what every state carries ---------------------------------------------------------------


class Outcome(Value, frozen=True):
    """How the newest finished order ended, to tell it again."""

    generation: int
    execution: str
    state: ExecutionState
    reason: Reason
    digest: str


class Standing(Value, frozen=True):
    """What holds whatever the device is doing."""

    device: str = ""
    blueprint: str = ""
    """Empty: this device was not told its blueprint, the control plane recognises it."""
    generation: int = 0
    """Newest generation brought to an end."""
    good: BundleRef | None = None
    """Last known good: the newest bundle that this device confirmed."""
    previous: BundleRef | None = None
    """What the spare slot holds while no candidate needs it."""
    floors: dict[str, int] = {}
    """Model name to the newest release ever confirmed: raised only by a confirm."""
    outcome: Outcome | None = None
    refused: str = ""
    """SHA-256 of the newest envelope refused unread, so that it is refused aloud only once."""


# --- states ---------------------------------------------------------------------------------


class Idle(Value, frozen=True):
    """Nothing is under way."""

    standing: Standing


class Verifying(Value, frozen=True):
    """The order is good; its manifest is being fetched and checked."""

    standing: Standing
    order: Order


class Downloading(Value, frozen=True):
    """Files are coming in."""

    standing: Standing
    order: Order


class Staged(Value, frozen=True):
    """The spare slot is written; it is read back before anything in it is run."""

    standing: Standing
    order: Order


class Waiting(Value, frozen=True):
    """Staged outside its activation window; it is read back again before it is tried.

    `until` is when to look at the clock again; none once the window has passed, since only a
    newer order can name another.
    """

    standing: Standing
    order: Order
    until: float | None = None


class Benchmarking(Value, frozen=True):
    """The trial runs; `tries` counts its starts, durably, since a model can take a machine down."""

    standing: Standing
    order: Order
    tries: int = 1


class Holding(Value, frozen=True):
    """The trial was inconclusive: never a reason to roll back, never one to activate."""

    standing: Standing
    order: Order
    until: float


class Activating(Value, frozen=True):
    """The active link is being switched; `waiting` is a newer order that came meanwhile."""

    standing: Standing
    order: Order
    waiting: Order | None = None


class Soaking(Value, frozen=True):
    """The candidate is active, on probation until `until`."""

    standing: Standing
    order: Order
    tries: int
    until: float
    probe_at: float | None = None
    """When the next probe is due; none while one runs."""
    waiting: Order | None = None


class Reverting(Value, frozen=True):
    """The active link is being switched back to `back_to` (none: to no model at all)."""

    standing: Standing
    generation: int
    execution: str
    leaving: BundleRef | None
    back_to: BundleRef | None
    reason: Reason
    retry_at: float | None = None
    waiting: Order | None = None


State = (
    Idle
    | Verifying
    | Downloading
    | Staged
    | Waiting
    | Benchmarking
    | Holding
    | Activating
    | Soaking
    | Reverting
)


# --- events ---------------------------------------------------------------------------------


class Started(Value, frozen=True):
    """The agent started: which bundles on disk are whole, and where the active link leads."""

    device: str
    blueprint: str
    link: str
    sound: tuple[str, ...]


class Ordered(Value, frozen=True):
    """A signed order arrived and its signature is good."""

    order: Order
    envelope: str
    """SHA-256 of the envelope."""


class OrderRefused(Value, frozen=True):
    """An envelope arrived that is not to be followed; its claims are repeated, not believed."""

    envelope: str
    reason: Reason
    generation: int = 0
    execution: str = ""


class ManifestRead(Value, frozen=True):
    """The manifest is here and its signature is good."""

    generation: int
    manifest: Manifest


class BundleStaged(Value, frozen=True):
    """Every file is in the spare slot."""

    generation: int


class SlotSound(Value, frozen=True):
    """The spare slot was read back: every byte is as signed."""

    generation: int


class TrialEnded(Value, frozen=True):
    """The trial has a verdict, and its evidence."""

    generation: int
    verdict: Verdict
    metrics: tuple[Metric, ...] = ()
    seconds: float = 0.0
    blocks: dict[str, list[float]] = {}


class Switched(Value, frozen=True):
    """The active link leads where it was asked to."""

    generation: int


class Probed(Value, frozen=True):
    """The active model was loaded and generated tokens, or did not."""

    generation: int
    healthy: bool


class StepFailed(Value, frozen=True):
    """The step under way failed for good; it was retried where that helps."""

    generation: int
    reason: Reason


class Tick(Value, frozen=True):
    """The time of `wake_at` has come."""


class OperatorRollback(Value, frozen=True):
    """A person at the device asks for the model before."""


Event = (
    Started
    | Ordered
    | OrderRefused
    | ManifestRead
    | BundleStaged
    | SlotSound
    | TrialEnded
    | Switched
    | Probed
    | StepFailed
    | Tick
    | OperatorRollback
)


# --- effects --------------------------------------------------------------------------------


class FetchManifest(Value, frozen=True):
    """Get the manifest from disk or server and check its signature: ManifestRead."""

    generation: int
    digest: str


class Download(Value, frozen=True):
    """Fetch what is missing into the spare slot: BundleStaged."""

    generation: int
    bundle: BundleRef


class CheckSlot(Value, frozen=True):
    """Read a slot back and compare: SlotSound."""

    generation: int
    digest: str


class RunTrial(Value, frozen=True):
    """Compare candidate and incumbent (empty: none) in a child: TrialEnded."""

    order: Order
    incumbent: str


class Switch(Value, frozen=True):
    """Read a bundle back and lead the active link to it (empty: to none): Switched."""

    generation: int
    digest: str


class Restore(Value, frozen=True):
    """Lead the active link to a bundle known to be whole, before anything else; no answer."""

    digest: str


class Probe(Value, frozen=True):
    """Load the active model and generate: Probed."""

    generation: int
    digest: str


class Cancel(Value, frozen=True):
    """Stop the step under way; its answer is not wanted any more."""


class Collect(Value, frozen=True):
    """Remove every bundle and partial download but these."""

    keep: tuple[str, ...]


class Report(Value, frozen=True):
    """Tell the control plane of a transition; kept until it is acknowledged."""

    generation: int
    execution: str
    state: ExecutionState
    reason: Reason = Reason.NONE
    digest: str = ""


class ReportBench(Value, frozen=True):
    """Tell the control plane what the trial measured; kept until it is acknowledged."""

    order: Order
    incumbent: str
    trial: TrialEnded


class ReportState(Value, frozen=True):
    """Tell the control plane where the device stands; the newest one is enough."""


Effect = (
    FetchManifest
    | Download
    | CheckSlot
    | RunTrial
    | Switch
    | Restore
    | Probe
    | Cancel
    | Collect
    | Report
    | ReportBench
    | ReportState
)
