"""The FleetProfile document: what a simulated fleet is like; read strictly, errors name the field.

Shares are weights: `{vie: 3, fra: 1}` puts three devices of four in vie. Times of a device are
lognormal: a median, and the factor by which a typical one differs (its spread, 1 for none).
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agent.protocol.backoff import FIRST_PAUSE_S, LONGEST_PAUSE_S
from agent.protocol.messages import Hardware
from control_plane.domain.errors import FlotillaError, InvalidError
from control_plane.services.device_facts import check_labels
from control_plane.services.rollout_fields import Duration

MAX_BYTES = 1_000_000
NAME = r"^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$"
RUNS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}@[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)]
Shares = dict[str, Weight]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Latency(_Strict):
    """One way over a device's line."""

    median: Duration = 0.02
    spread: Spread = 1.5


class LinkProfile(_Strict):
    """The line between a device and the control plane."""

    latency: Latency = Latency()
    seconds_per_mb: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 0.1
    """Of a download, at the median; the latency's spread applies."""
    duplicates: Share = 0.0
    """Of reports that arrive twice."""
    reordered: Share = 0.0
    """Of reports that are overtaken by later ones."""


class TrialProfile(_Strict):
    """What trials measure."""

    seconds: Duration = 20.0
    token_ms: Annotated[float, Field(gt=0, le=60_000, allow_inf_nan=False)] = 5.0
    device_noise: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.2
    """Standard deviation of the logarithm of a device's speed; cancels out in a trial."""
    trial_noise: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.005
    """The same of what a whole trial is off by: what interleaving does not cancel."""
    block_noise: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.02
    """The same of one block's ratio within a trial."""


class Downloading(_Strict):
    """How the download ends badly."""

    failed: Share = 0.0
    silent: Share = 0.0


class Benchmarking(_Strict):
    """How the trial ends badly, apart from what it measures."""

    rolled_back: Share = 0.0
    silent: Share = 0.0


class Activating(_Strict):
    """How the switch ends badly."""

    failed: Share = 0.0
    silent: Share = 0.0


class Soaking(_Strict):
    """How probation ends badly."""

    rolled_back: Share = 0.0
    silent: Share = 0.0


class Failures(_Strict):
    """Probabilities, step by step."""

    downloading: Downloading = Downloading()
    benchmarking: Benchmarking = Benchmarking()
    activating: Activating = Activating()
    soaking: Soaking = Soaking()


class VersionProfile(_Strict):
    """The truth about one model version, which the rollout is to find out."""

    slowdown: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 1.0
    """Its time per token over that of a version not named here."""
    failures: Failures | None = None
    """In place of the fleet's."""


class Offline(_Strict):
    """Devices that come and go; those not in `share` stay."""

    share: Share = 0.0
    up: Annotated[Duration, Field(gt=0)] = 3600.0
    down: Annotated[Duration, Field(gt=0)] = 600.0
    silent_for: Duration = 0.0
    """How long a device that fell silent in a step stays away; 0: for good."""


class Reconnect(_Strict):
    """The agent's own settings of the same meaning."""

    base: Annotated[Duration, Field(gt=0)] = FIRST_PAUSE_S
    cap: Annotated[Duration, Field(gt=0)] = LONGEST_PAUSE_S


class Class(_Strict):
    """One hardware class: its weight in the fleet, and what its devices say of themselves."""

    share: Weight = 1.0
    speed: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    """Time per token over the profile's."""
    arch: str = ""
    cpu: str = ""
    flags: list[str] = []
    cores: Annotated[int, Field(ge=0, le=4096)] = 0
    memory_mb: Annotated[int, Field(ge=0, le=2**31)] = 0
    disk_free_mb: Annotated[int, Field(ge=0, le=2**31)] = 0
    os: str = ""
    board: str = ""
    runtimes: list[str] = ["onnxruntime"]

    def hardware(self) -> Hardware:
        """Return the facts as the wire has them."""
        return Hardware(**self.model_dump(exclude={"share", "speed"}))


class Spec(_Strict):
    """What the fleet is like."""

    runs: str = ""
    """MODEL@VERSION that devices run when they first come; empty: nothing."""
    blueprints: dict[str, Class] = Field(min_length=1)
    sites: Shares = {}
    """Values of the label `site`."""
    labels: dict[str, Shares] = {}
    link: LinkProfile = LinkProfile()
    download: Literal["none", "real"] = "none"
    """Whether bytes are really fetched, or only the time for them passes."""
    mqtt: Literal["5", "3.1.1"] = "5"
    trial: TrialProfile = TrialProfile()
    failures: Failures = Failures()
    versions: dict[str, VersionProfile] = {}
    offline: Offline = Offline()
    heartbeat: Annotated[Duration, Field(gt=0)] = 60.0
    resend: Annotated[Duration, Field(gt=0)] = 30.0
    keepalive: Annotated[Duration, Field(ge=10, le=1200)] = 60.0
    reconnect: Reconnect = Reconnect()
    connects_per_second: Annotated[int, Field(ge=1, le=100_000)] = 300
    """At the start only; later the back-off decides."""

    @field_validator("runs")
    @classmethod
    def _named(cls, value: str) -> str:
        if value and not RUNS.fullmatch(value):
            raise ValueError("write MODEL@VERSION, such as support-slm@1.0.0")
        return value

    @field_validator("sites")
    @classmethod
    def _sites(cls, value: Shares) -> Shares:
        return _legal("site", value)

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, Shares]) -> dict[str, Shares]:
        for key, shares in value.items():
            if key == "site":
                raise ValueError("the label site has a field of its own: sites")
            if not shares:
                raise ValueError(f"label {key} has no values")
            _legal(key, shares)
        return value

    def failures_of(self, version: str) -> Failures:
        """Return the probabilities that hold for a model version."""
        known = self.versions.get(version)
        return self.failures if known is None or known.failures is None else known.failures

    def slowdown(self, version: str) -> float:
        """Return a version's time per token over that of a version not named."""
        known = self.versions.get(version)
        return 1.0 if known is None else known.slowdown


class Metadata(_Strict):
    """What the fleet is called; its devices' names begin with it."""

    name: str = Field(pattern=NAME)


class Profile(_Strict):
    """A whole document."""

    apiVersion: Literal["flotilla/v1"]  # noqa: N815 - the document's own spelling
    kind: Literal["FleetProfile"]
    metadata: Metadata
    spec: Spec

    @property
    def name(self) -> str:
        return self.metadata.name


def parse(document: object) -> Profile:
    """Read what YAML gave; `InvalidError` names the first wrong field and what it should be."""
    try:
        return Profile.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = _path(first["loc"])
        others = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidError(f"fleet profile: {path}: {message}{others}", field=path) from error


def load(path: Path) -> Profile:
    """Read a profile's file; `InvalidError` names the file, and the field or the line."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidError(f"{path}: longer than {MAX_BYTES} bytes", field="--profile")
        document = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidError(f"{path}: {error.strerror}", field="--profile") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"{path}: not YAML: {error}", field="--profile") from error
    try:
        return parse(document)
    except InvalidError as error:
        raise InvalidError(f"{path}: {error.message}", field=error.field) from error


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a FleetProfile document, for editors."""
    return Profile.model_json_schema()


def _legal(key: str, shares: Shares) -> Shares:
    try:
        for value in shares:
            check_labels({key: value})
    except FlotillaError as error:
        raise ValueError(error.message) from error
    return shares


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or "document"
