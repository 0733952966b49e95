"""The fields of a Rollout document, read strictly: types, units, defaults and bounds."""

import re
from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from control_plane.domain import windows
from control_plane.domain.rollout import DEFAULT_PRIORITY, HIGHEST_PRIORITY, LOWEST_PRIORITY

NAME = r"^[a-z0-9][a-z0-9.-]{0,62}$"
MODEL = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"
LABEL = r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,62}$"
PERSON = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$"
"""As of API tokens: the name that an approval is booked under."""
MAX_WAVES = 100
MAX_PEOPLE = 100
MAX_BUDGETS = 10
YEAR_S = 366 * 86400
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
Metric = Literal["token_ms", "first_token_ms", "memory_mb", "load_ms"]
StepName = Literal["offered", "downloading", "staged", "benchmarking", "activating", "soaking"]

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)")


def _seconds(value: object) -> object:
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is None:
            raise ValueError('a duration is a number and ms, s, m, h or d, such as "30s" or "1h"')
        return float(found[1]) * UNITS[found[2]]
    return value


def _people(value: object) -> object:
    """Say `none` and `required` as the number of people that they are."""
    if value in ("none", "required"):
        return None if value == "none" else {"needed": 1}
    if isinstance(value, dict | ApprovalDocument):
        return value
    raise ValueError("Input should be 'none' or 'required', or needed and of")


Duration = Annotated[
    float,
    BeforeValidator(_seconds, json_schema_input_type=str | float),
    Field(ge=0, le=YEAR_S, allow_inf_nan=False),
]
Tolerance = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Limit = Annotated[Duration, Field(gt=0)]


class Strict(BaseModel):
    """Nothing unknown, nothing converted, nothing changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Metadata(Strict):
    """What the rollout is called."""

    name: str = Field(pattern=NAME)


class ApprovalDocument(Strict):
    """How many people must approve, and who may; nobody named: everybody but the author."""

    needed: int = Field(default=1, ge=1, le=MAX_PEOPLE)
    of: list[Annotated[str, Field(pattern=PERSON)]] = Field(default=[], max_length=MAX_PEOPLE)

    @model_validator(mode="after")
    def _enough(self) -> "ApprovalDocument":
        if len(set(self.of)) != len(self.of):
            raise ValueError("a person is named twice in of")
        if self.of and self.needed > len(self.of):
            raise ValueError(f"{self.needed} are needed and only {len(self.of)} may approve")
        return self


Approvals = Annotated[
    ApprovalDocument | None,
    BeforeValidator(_people, json_schema_input_type=Literal["none", "required"] | ApprovalDocument),
]


class GrowthDocument(Strict):
    """After each `every` successes per_minute is multiplied by `factor`, up to `limit`."""

    factor: float = Field(gt=1, le=100, allow_inf_nan=False)
    every: int = Field(ge=1)
    limit: int = Field(ge=1)


class PaceDocument(Strict):
    """How many at once, and how many a minute."""

    max_in_flight: int = Field(default=100, ge=1)
    per_minute: int = Field(default=600, ge=1)
    growth: GrowthDocument | None = None


class WavePaceDocument(Strict):
    """A wave's own pace; what it does not say is as in the rollout's."""

    max_in_flight: int | None = Field(default=None, ge=1)
    per_minute: int | None = Field(default=None, ge=1)
    growth: GrowthDocument | None = None


class WaveDocument(Strict):
    """Devices that get it together: `count`, up to `percent` of all that match, or a selector."""

    name: str = Field(pattern=NAME)
    count: int | None = Field(default=None, ge=1)
    percent: int | None = Field(default=None, ge=1, le=100)
    selector: str | None = Field(default=None, min_length=1)
    soak: Duration | None = None
    approval: Approvals = None
    timeout: Limit | None = None
    pace: WavePaceDocument | None = None

    @model_validator(mode="after")
    def _one_size(self) -> "WaveDocument":
        if sum(size is not None for size in (self.count, self.percent, self.selector)) != 1:
            raise ValueError("a wave has either count or percent or selector")
        return self


class GatesDocument(Strict):
    """What must hold, per blueprint, before the next wave."""

    min_answered: float = Field(default=1.0, gt=0, le=1)
    max_failures: int = Field(default=0, ge=0)
    max_failure_rate: float | None = Field(default=None, gt=0, lt=1)
    tolerance: dict[Metric, Tolerance] = Field(
        default={"token_ms": 0.10, "first_token_ms": 0.15, "memory_mb": 0.20, "load_ms": 0.50},
        min_length=1,
    )
    scope: Literal["rollout", "blueprint"] = "rollout"


class TrialDocument(Strict):
    """How each device measures candidate against incumbent."""

    min_blocks: int = Field(default=5, ge=2, le=100)
    max_blocks: int = Field(default=12, ge=2, le=100)
    tokens: int = Field(default=32, ge=1, le=4096)
    retry: Duration = 300.0

    @model_validator(mode="after")
    def _ordered(self) -> "TrialDocument":
        if self.max_blocks < self.min_blocks:
            raise ValueError("max_blocks is below min_blocks")
        return self


class TimeoutsDocument(Strict):
    """After which silence, how long in a step, and how long in all, a device is TIMED_OUT."""

    silent: Duration = 3600.0
    execution: Duration = 6 * 3600.0
    steps: dict[StepName, Limit] = {}


class BudgetDocument(Strict):
    """At most `max` devices in flight that share a value of the label."""

    label: str = Field(pattern=LABEL)
    max: int = Field(ge=1)


class WindowDocument(Strict):
    """When a window opens (a cron line of five fields, in a zone), and for how long."""

    cron: str = Field(max_length=200)
    duration: Annotated[Duration, Field(ge=windows.MIN_DURATION_S)]
    timezone: str = Field(default="UTC", max_length=64)


class WindowsDocument(Strict):
    """When devices may be offered it and download; when they may try it and switch."""

    download: WindowDocument | None = None
    activate: WindowDocument | None = None


class Spec(Strict):
    """Which model version, to whom, and how carefully."""

    model: str = Field(pattern=MODEL)
    version: str = Field(pattern=MODEL)
    selector: str = ""
    waves: list[WaveDocument] = Field(min_length=1, max_length=MAX_WAVES)
    soak: Duration = 30.0
    pace: PaceDocument = PaceDocument()
    budgets: list[BudgetDocument] = Field(default=[], max_length=MAX_BUDGETS)
    windows: WindowsDocument = WindowsDocument()
    gates: GatesDocument = Field(default_factory=GatesDocument)
    trial: TrialDocument = TrialDocument()
    timeouts: TimeoutsDocument = Field(default_factory=TimeoutsDocument)
    not_before: Annotated[AwareDatetime, Field(strict=False)] | None = None
    approval: Approvals = None
    priority: int = Field(default=DEFAULT_PRIORITY, ge=LOWEST_PRIORITY, le=HIGHEST_PRIORITY)
    dynamic: bool = False
    on_breach: Literal["halt", "revert"] = "halt"
    max_tries: int = Field(default=3, ge=1, le=100)

    @model_validator(mode="after")
    def _no_twins(self) -> "Spec":
        if len({wave.name for wave in self.waves}) != len(self.waves):
            raise ValueError("two waves have the same name")
        if len({budget.label for budget in self.budgets}) != len(self.budgets):
            raise ValueError("two budgets are for the same label")
        return self


class RolloutDocument(Strict):
    """A whole document."""

    apiVersion: Literal["flotilla/v1"]  # noqa: N815 - the document's own spelling
    kind: Literal["Rollout"]
    metadata: Metadata
    spec: Spec


PLACES: dict[str, type[BaseModel]] = {
    "": RolloutDocument,
    "metadata": Metadata,
    "spec": Spec,
    "spec.waves": WaveDocument,
    "spec.waves.approval": ApprovalDocument,
    "spec.waves.pace": WavePaceDocument,
    "spec.waves.pace.growth": GrowthDocument,
    "spec.pace": PaceDocument,
    "spec.pace.growth": GrowthDocument,
    "spec.budgets": BudgetDocument,
    "spec.windows": WindowsDocument,
    "spec.windows.download": WindowDocument,
    "spec.windows.activate": WindowDocument,
    "spec.gates": GatesDocument,
    "spec.trial": TrialDocument,
    "spec.timeouts": TimeoutsDocument,
    "spec.approval": ApprovalDocument,
}
"""Which mapping stands where, to say what fields it knows."""
