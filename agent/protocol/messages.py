"""The messages, compact JSON with a schema version; golden files in tests freeze them.

Never change a message in the field: add an optional field or a new message. Readers ignore
unknown fields. Times are Unix seconds, durations seconds or milliseconds as the name says.
"""

from typing import TypeVar

import msgspec

from agent.protocol.errors import MalformedError, TooLargeError
from agent.protocol.words import Action, ExecutionState, Reason, Verdict

MAX_MESSAGE = 65_536  # bytes; an up message


class Hardware(msgspec.Struct, frozen=True):
    """What a device says of itself; closed fields, so that no user text can ride along."""

    arch: str = ""
    cpu: str = ""
    flags: list[str] = []
    cores: int = 0
    memory_mb: int = 0
    disk_free_mb: int = 0
    os: str = ""
    board: str = ""
    runtimes: list[str] = []


# --- up -------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Sent on every connect: who I am and the newest generation that I have applied."""

    v: int = 1
    boot: int
    generation: int
    digest: str = ""
    """Bundle digest that runs now; empty if none."""
    last_known_good: str = ""
    agent: str
    capabilities: list[str] = []
    hardware: Hardware = Hardware()
    blueprint: str = ""
    """The blueprint that the device was told to report, empty to be recognised by hardware."""


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """Retained; the will says offline with the same connection number."""

    v: int = 1
    online: bool
    connection: int


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The reported state, whole; applies only when newer by (boot, seq)."""

    v: int = 1
    boot: int
    seq: int
    generation: int
    digest: str = ""
    previous: str = ""
    last_known_good: str = ""
    candidate: str = ""
    state: ExecutionState | None = None
    reason: Reason = Reason.NONE


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One transition of one execution; kept by the device until acknowledged."""

    v: int = 1
    boot: int
    seq: int
    generation: int
    execution: str
    state: ExecutionState
    reason: Reason = Reason.NONE
    digest: str = ""
    """Bundle digest that runs after this transition."""
    at: float = 0.0
    """Device clock; for people, never for order."""


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One paired measurement: ratio candidate / incumbent with its confidence interval.

    For every metric larger is worse. Without an incumbent ratio, ci_low, ci_high and incumbent
    are null and only `limit` is judged.
    """

    name: str
    """token_ms, first_token_ms, load_ms, memory_mb or golden_disagreement."""
    unit: str
    candidate: float
    incumbent: float | None = None
    ratio: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    tolerance: float | None = None
    limit: float | None = None
    n: int = 0
    """Blocks per side."""
    verdict: Verdict


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence of one trial; kept by the device until acknowledged."""

    v: int = 1
    boot: int
    seq: int
    generation: int
    execution: str
    candidate: str
    incumbent: str = ""
    verdict: Verdict
    metrics: list[Metric]
    seconds: float = 0.0
    blocks: dict[str, list[float]] = {}
    """Raw block values by series name (such as candidate.token_ms), to replay the verdict."""


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """QoS 0: alive, and what runs."""

    v: int = 1
    boot: int
    generation: int
    digest: str = ""
    uptime_s: int = 0
    healthy: bool = True


# --- down -----------------------------------------------------------------------------------


class BundleRef(msgspec.Struct, frozen=True):
    """Which bundle: digest of its manifest, and facts repeated so that both must agree."""

    digest: str
    model: str
    version: str
    release: int
    size: int
    """Bytes of all files."""


class TrialPolicy(msgspec.Struct, frozen=True):
    """How the trial is run and judged."""

    tolerances: dict[str, float] = {}
    """Metric name to tolerated relative worsening (0.10 is ten percent slower)."""
    min_blocks: int = 5
    max_blocks: int = 12
    tokens: int = 32
    """Tokens generated per run."""
    retry_s: float = 300.0
    """Pause before an inconclusive trial is repeated."""


class ActivationWindow(msgspec.Struct, frozen=True):
    """When a device may begin the trial and the switch, in Unix seconds of a true clock."""

    not_before: int
    not_after: int
    """From this second on it is too late: the device stays staged and awaits a newer order."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """The desired state of one device: the payload of the signed envelope on down/desired."""

    v: int = 1
    order: str
    device: str
    generation: int
    issued: int
    expires: int
    action: Action
    rollout: str = ""
    execution: str = ""
    bundle: BundleRef | None = None
    trial: TrialPolicy = TrialPolicy()
    soak_s: float = 0.0
    max_tries: int = 3
    """Starts without a confirm before the device goes back."""
    activate: ActivationWindow | msgspec.UnsetType = msgspec.UNSET
    """Absent: as soon as it is staged. A revert never waits."""


class Ack(msgspec.Struct, frozen=True):
    """Reports that are committed: the device may forget these (boot, seq) pairs."""

    reports: list[tuple[int, int]]
    v: int = 1


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A nudge; can ask only for what is harmless, since it is not signed."""

    v: int = 1
    id: str
    name: str
    """hello: say hello again; back-off: this is a `BackOff`."""
    expires: int


class BackOff(msgspec.Struct, frozen=True, kw_only=True):
    """A command of a control plane whose inbox lags: less, please, for a while.

    The device does without signs of life and repeated reports for a random time of half to all of
    `seconds`, and reconnects no sooner than a random part of it. What is new it tells at once.
    """

    v: int = 1
    id: str
    name: str = "back-off"
    expires: int
    seconds: int
    """`backoff.MOST_TOLD_S` at most counts."""


M = TypeVar("M")


def encode(message: msgspec.Struct) -> bytes:
    """Return the compact JSON of a message."""
    return msgspec.json.encode(message)


def decode(data: bytes, kind: type[M]) -> M:
    """Read one message.

    Raises:
        TooLargeError: over `MAX_MESSAGE` bytes.
        MalformedError: names the field that is wrong.
    """
    if len(data) > MAX_MESSAGE:
        raise TooLargeError(f"{kind.__name__} of {len(data)} bytes; the limit is {MAX_MESSAGE}")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError(f"{kind.__name__}: {error}") from error
