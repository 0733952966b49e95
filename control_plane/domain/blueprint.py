"""A blueprint: a hardware class, its limits, its runtime settings, its recipes and quality floors.

Pure rules: which blueprint a device belongs to, and whether an artifact is good enough for it.
"""

import fnmatch
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Match:
    """How to recognise the hardware; every stated rule must hold, an unstated one always does."""

    arch: str = ""
    os: str = ""
    board: str = ""
    """A glob, such as ``Raspberry Pi 5*``."""
    flags_all: tuple[str, ...] = ()
    flags_any: tuple[str, ...] = ()
    flags_none: tuple[str, ...] = ()
    min_memory_mb: int = 0

    def holds(self, hardware: Mapping[str, Any]) -> bool:
        """Tell whether a device that reports `hardware` belongs here."""
        flags = {str(flag).lower() for flag in hardware.get("flags") or ()}
        return (
            _same(self.arch, hardware.get("arch"))
            and _same(self.os, hardware.get("os"))
            and fnmatch.fnmatchcase(str(hardware.get("board") or ""), self.board or "*")
            and flags.issuperset(self.flags_all)
            and (not self.flags_any or not flags.isdisjoint(self.flags_any))
            and flags.isdisjoint(self.flags_none)
            and int(hardware.get("memory_mb") or 0) >= self.min_memory_mb
        )

    @property
    def specificity(self) -> tuple[int, int]:
        """How much is asked for: more rules first, then more flags."""
        stated = [self.arch, self.os, self.board, self.flags_all, self.flags_any, self.flags_none]
        flags = len(self.flags_all) + bool(self.flags_any) + len(self.flags_none)
        return sum(map(bool, (*stated, self.min_memory_mb))), flags


def _same(wanted: str, found: object) -> bool:
    return not wanted or wanted.lower() == str(found or "").lower()


@dataclass(frozen=True)
class Limits:
    """Absolute limits; None is not checked. The builder checks the disk, the device the rest."""

    disk_mb: float | None = None
    memory_mb: float | None = None
    first_token_ms: float | None = None
    token_ms: float | None = None
    load_ms: float | None = None


@dataclass(frozen=True)
class RuntimeSettings:
    """How the device loads a model."""

    name: str = "onnxruntime"
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    graph_level: str = "all"


@dataclass(frozen=True)
class Floors:
    """The least quality against the fp32 source that may leave the builder."""

    kl_mean_max: float
    kl_p99_max: float
    top1_agreement_min: float
    perplexity_ratio_max: float
    golden_min_agreement: float
    """On the builder and, in the manifest, on the device; a waiver never lowers it there."""


@dataclass(frozen=True)
class Blueprint:
    """One hardware class."""

    name: str
    match: Match
    limits: Limits
    runtime: RuntimeSettings
    recipes: tuple[str, ...]
    """Best first."""
    quality: Floors
    notes: str = ""
    sources: tuple[str, ...] = field(default=())

    @property
    def build_digest(self) -> str:
        """Digest of what decides a build: two blueprints that share it build the same."""
        facts = {key: value for key, value in asdict(self).items() if key in _DECIDES_BUILDS}
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


_DECIDES_BUILDS = frozenset(("name", "limits", "runtime", "recipes", "quality"))


def recognise(blueprints: Iterable[Blueprint], hardware: Mapping[str, Any]) -> Blueprint | None:
    """Return the most specific blueprint whose rules hold; equals are settled by name."""
    holding = sorted((b for b in blueprints if b.match.holds(hardware)), key=lambda b: b.name)
    return max(holding, key=lambda b: b.match.specificity, default=None)


@dataclass(frozen=True)
class Shortfall:
    """One bound that an artifact breaks: the measured value (None: missing) and the bound."""

    metric: str
    value: float | None
    bound: float
    at_least: bool = False

    def __str__(self) -> str:
        sign, found = ">=" if self.at_least else "<=", "not measured"
        if self.value is not None:
            found = f"{self.value:.4g}"
        return f"{self.metric} {found}, wanted {sign} {self.bound:g}"


def shortfalls(blueprint: Blueprint, quality: Mapping[str, float], size: int) -> list[Shortfall]:
    """Return every bound that an artifact of `size` bytes breaks; empty is good enough.

    A number that is missing or is not finite breaks its bound: gates fail closed.
    """
    floors, found = blueprint.quality, []
    for metric, bound, at_least in (
        ("kl_mean", floors.kl_mean_max, False),
        ("kl_p99", floors.kl_p99_max, False),
        ("perplexity_ratio", floors.perplexity_ratio_max, False),
        ("top1_agreement", floors.top1_agreement_min, True),
        ("golden_agreement", floors.golden_min_agreement, True),
    ):
        value = quality.get(metric)
        if value is None or not math.isfinite(value):
            found.append(Shortfall(metric, None, bound, at_least))
        elif value < bound if at_least else value > bound:
            found.append(Shortfall(metric, value, bound, at_least))
    return found + size_shortfalls(blueprint, size)


def size_shortfalls(blueprint: Blueprint, size: int) -> list[Shortfall]:
    """Return the disk limit if `size` bytes are over it; no waiver helps a full disk."""
    disk = blueprint.limits.disk_mb
    if disk is None or size <= disk * MEGABYTE:
        return []
    return [Shortfall("disk_mb", size / MEGABYTE, disk)]
