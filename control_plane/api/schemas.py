"""What requests may say; answers are the services' read models themselves."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from control_plane.services.rollout_views import Explanation

Name = Annotated[str, Field(min_length=1, max_length=128)]
Text = Annotated[str, Field(max_length=2000)]
Labels = Annotated[dict[str, str], Field(max_length=64)]


class _Closed(BaseModel):
    """A request body: a field that we do not know is a mistake, not decoration."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Reason(_Closed):
    """Why a person does it; the audit log and the decision keep it."""

    reason: Text = ""


class Abort(Reason):
    """Giving up a rollout: leave updated devices as they are, or take them back."""

    mode: Literal["keep", "revert"] = "keep"


class Retry(Reason):
    """Retrying the failed devices of a rollout that has ended."""

    name: Annotated[str, Field(max_length=63, pattern="^([a-z0-9][a-z0-9.-]{0,62})?$")] = ""
    """Of the new rollout; empty: the old name with -retry-1, -2 and so on."""
    include_rejected: bool = False


class LabelChange(Reason):
    """Labels to set; null takes one away."""

    labels: Annotated[dict[str, str | None], Field(min_length=1, max_length=64)]


class Invalidation(_Closed):
    """Calling a model version invalid: why, and whether devices that run it keep it."""

    reason: Annotated[str, Field(min_length=1, max_length=2000)]
    devices: Literal["keep", "revert"] = "keep"


class WebhookRequest(_Closed):
    """Who is told of decisions: an address, and types of events (none: all but the frequent)."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]
    events: Annotated[list[Name], Field(max_length=64)] = []


class TokenRequest(_Closed):
    """An enrolment token: for how many devices, for how long, with which labels."""

    labels: Labels = {}
    uses: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    ttl_s: Annotated[int, Field(ge=1, le=366 * 86400)] = 3600


class EnrollmentToken(BaseModel):
    """The token, shown once."""

    token: str


class StoredBlob(BaseModel):
    """Bytes that are stored."""

    sha256: str
    size: int


class FileEntry(_Closed):
    """One file of a model version, already uploaded."""

    path: Annotated[str, Field(min_length=1, max_length=512)]
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class VersionRequest(_Closed):
    """A model version: its files, and the version it was made from."""

    version: Name
    files: Annotated[list[FileEntry], Field(min_length=1, max_length=256)]
    parent: Annotated[str, Field(max_length=128)] = ""


class BuildRequest(_Closed):
    """Builds of one model version; without blueprints, for each that there is."""

    model: Name
    version: Name
    blueprints: Annotated[list[Name], Field(max_length=256)] = []
    recipe: Annotated[str, Field(max_length=128)] = ""
    """Only this recipe; empty: the blueprint's, best first."""
    waiver: Text = ""
    """Why the quality limit is waived on purpose; empty: it holds."""


class Simulate(_Closed):
    """A policy to replay a recorded rollout under, and how devices without an answer answer."""

    policy: dict[str, Any] = {}
    """Fields of a rollout's spec that replace the recorded ones; or a whole document."""
    unknown: Literal["succeed", "fail", "rate"] = "rate"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class Explained(BaseModel):
    """Why a rollout is where it is, as data and in words."""

    explanation: Explanation
    text: str
