"""The Blueprint document of `apply -f`: read strictly, errors name the field."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from control_plane.domain.blueprint import Blueprint, Floors, Limits, Match, RuntimeSettings
from control_plane.domain.errors import InvalidError
from control_plane.domain.recipe import RECIPES

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bound = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Flag = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.]{0,40}$")]
NAME = r"^[a-z0-9][a-z0-9.-]{0,62}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Metadata(_Strict):
    """What the blueprint is called."""

    name: str = Field(pattern=NAME)


class MatchDocument(_Strict):
    """How to recognise the hardware; every stated rule must hold."""

    arch: str = ""
    os: str = ""
    board: str = ""
    flags_all: list[Flag] = []
    flags_any: list[Flag] = []
    flags_none: list[Flag] = []
    min_memory_mb: int = Field(default=0, ge=0)


class LimitsDocument(_Strict):
    """Absolute limits; a missing one is not checked."""

    disk_mb: Positive | None = None
    memory_mb: Positive | None = None
    first_token_ms: Positive | None = None
    token_ms: Positive | None = None
    load_ms: Positive | None = None


class RuntimeDocument(_Strict):
    """How the device loads a model."""

    name: Literal["onnxruntime"] = "onnxruntime"
    provider: Literal["CPUExecutionProvider"] = "CPUExecutionProvider"
    threads: int = Field(default=1, ge=1, le=256)
    graph_level: Literal["disabled", "basic", "extended", "all"] = "all"


class QualityDocument(_Strict):
    """The least quality against the fp32 source; every bound is stated, none has a default."""

    kl_mean_max: Bound
    kl_p99_max: Bound
    top1_agreement_min: Share
    perplexity_ratio_max: Bound
    golden_min_agreement: Share


class Spec(_Strict):
    """What the hardware is like and how to build for it."""

    match: MatchDocument
    limits: LimitsDocument
    runtime: RuntimeDocument = RuntimeDocument()
    recipes: list[str] = Field(min_length=1, max_length=32)
    quality: QualityDocument
    notes: str = Field(default="", max_length=4000)
    sources: list[str] = Field(default=[], max_length=32)

    @field_validator("recipes")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        unknown = [name for name in names if name not in RECIPES]
        if unknown:
            raise ValueError(f"unknown {', '.join(unknown)}; known: {', '.join(RECIPES)}")
        if len(set(names)) != len(names):
            raise ValueError("a recipe comes twice")
        return names


class BlueprintDocument(_Strict):
    """A whole document."""

    apiVersion: Literal["flotilla/v1"]  # noqa: N815 - the document's own spelling
    kind: Literal["Blueprint"]
    metadata: Metadata
    spec: Spec

    def to_domain(self) -> Blueprint:
        """Return the value that the rest of the control plane works with."""
        spec = self.spec
        match: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in spec.match.model_dump().items()
        }
        return Blueprint(
            name=self.metadata.name,
            match=Match(**match),
            limits=Limits(**spec.limits.model_dump()),
            runtime=RuntimeSettings(**spec.runtime.model_dump()),
            recipes=tuple(spec.recipes),
            quality=Floors(**spec.quality.model_dump()),
            notes=spec.notes,
            sources=tuple(spec.sources),
        )


def parse(raw: object) -> Blueprint:
    """Read a document that YAML or JSON gave.

    Raises:
        InvalidError: names the first wrong field by its path, and what it should be.
    """
    try:
        return BlueprintDocument.model_validate(raw).to_domain()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = _path(first["loc"])
        others = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InvalidError(f"blueprint: {path}: {first['msg']}{others}", field=path) from error


def to_document(blueprint: Blueprint) -> dict[str, Any]:
    """Return the document that gives this blueprint again."""
    facts = {key: value for key, value in asdict(blueprint).items() if key != "name"}
    spec = Spec.model_validate(facts, strict=False)
    return {
        "apiVersion": "flotilla/v1",
        "kind": "Blueprint",
        "metadata": {"name": blueprint.name},
        "spec": spec.model_dump(exclude_defaults=True),
    }


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the document, for editors."""
    return BlueprintDocument.model_json_schema()


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or "document"
