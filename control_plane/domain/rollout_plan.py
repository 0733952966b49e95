"""Which device in which wave: by a hash of (rollout, device), spread over blueprints and sites.

The store plans in SQL (store/plans.py), for a million devices; `make_plan` is the same in words
that can be read, and a property test holds the two together on both databases.

The order. Devices stand in a line: by blueprint, then site, then device, sites and devices by
their hash with the rollout. The t-th of the line gets the key (t + start) * 2654435769 mod 2^32,
and the keys are the order. The factor is 2^32 divided by the golden ratio (Knuth, The Art of
Computer Programming 3, section 6.4: Fibonacci hashing): the multiples of the golden ratio fill a
circle evenly, so that every beginning of the order takes from every stretch of the line, a
blueprint or a site, its share within a device or two. Each blueprint's first device then goes
before anybody's second: a canary with room holds every blueprint.

The waves take devices one after another. `count` takes so many of those that are left, `percent`
as many as are missing until that part of all fitting devices is placed, by whichever waves, and
`selector` all of those left that match. Who is left after the last wave is not in the rollout.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from control_plane.domain import selector
from control_plane.domain.device import ACTIVE, SITE_LABEL, DeviceFacts, DeviceId
from control_plane.domain.rollout import RolloutSpec, WaveSpec

MB = 1_000_000
GOLDEN = 2_654_435_769
KEYS = 2**32
_START_BITS, SITE_BITS, DEVICE_BITS = 28, 20, 32
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Place:
    """One device's place: which wave, and when within it."""

    device: DeviceId
    blueprint: str
    wave: int
    position: int


@dataclass(frozen=True)
class Misfit:
    """A device that matches the selector but cannot get it."""

    device: DeviceId
    blueprint: str
    reason: str


@dataclass(frozen=True)
class BlueprintFit:
    """What is known of a blueprint's bundle: its size once built, or why there is none."""

    size: int | None = None
    failed: str = ""


@dataclass(frozen=True)
class Plan:
    """The whole plan; devices beyond the last wave's share stay as they are."""

    places: tuple[Place, ...]
    misfits: tuple[Misfit, ...]


def make_plan(
    spec: RolloutSpec,
    devices: Iterable[DeviceFacts],
    fits: dict[str, BlueprintFit],
    now: datetime = _LONG_AGO,
) -> Plan:
    """Plan a rollout: the same devices, in any order, give the same plan."""
    fitting: list[DeviceFacts] = []
    misfits: list[Misfit] = []
    for facts in devices:
        reason = misfit_reason(facts, fits.get(facts.blueprint or "", BlueprintFit()))
        if reason:
            misfits.append(Misfit(facts.id, facts.blueprint or "", reason))
        else:
            fitting.append(facts)
    left, total = _ordered(spec.name, fitting), len(fitting)
    places: list[Place] = []
    for number, wave in enumerate(spec.waves):
        chosen = _chosen(wave, left, total, now)
        places += [Place(one.id, one.blueprint or "", number, i) for i, one in enumerate(chosen)]
        taken = {one.id for one in chosen}
        left = [one for one in left if one.id not in taken]
    return Plan(tuple(places), tuple(sorted(misfits, key=lambda one: one.device)))


def misfit_reason(facts: DeviceFacts, fit: BlueprintFit) -> str:
    """Say why a device cannot get it; empty if it can."""
    if facts.state != ACTIVE:
        return f"is {facts.state}"
    if not facts.blueprint:
        return "no blueprint recognises its hardware"
    if fit.failed:
        return f"no bundle for {facts.blueprint}: {fit.failed}"
    free = facts.hardware.get("disk_free_mb")
    if fit.size is not None and isinstance(free, int) and 0 < free * MB < fit.size:
        return f"{needs(fit.size)}, {free} MB are free"
    return ""


def needs(size: int) -> str:
    """Say how much disk a bundle of so many bytes needs."""
    return f"needs {math.ceil(size / MB)} MB of disk"


def room(wave: WaveSpec, placed: int, total: int) -> int:
    """Return how many a wave by count or percent takes, after `placed` of all."""
    if wave.count is not None:
        return wave.count
    return max(0, share(wave.percent or 0, total) - placed)


def share(percent: int, total: int) -> int:
    """Return so much of all, rounded up: a wave is never empty for being small."""
    return -(-total * percent // 100)


def start(rollout: str) -> int:
    """Return where on the circle of keys a rollout's line begins: another for each rollout."""
    return _bits(place_hash(rollout, ""), _START_BITS)


def site_mark(rollout: str, site: str) -> int:
    """Return a site's place in the line; that two may share one only mixes their devices."""
    return _bits(place_hash(rollout, site), SITE_BITS)


def execution_id(rollout: str, device: str) -> str:
    """Return the id of a device's part in a rollout: always the same one."""
    return place_hash(rollout, device)[:32]


def place_hash(rollout: str, name: str) -> str:
    """Return the hash that orders; the name of a rollout has no slash."""
    return sha256(f"{rollout}/{name}".encode()).hexdigest()


def _chosen(
    wave: WaveSpec, left: list[DeviceFacts], total: int, now: datetime
) -> list[DeviceFacts]:
    if wave.selector:
        wanted = selector.parse(wave.selector)
        return [one for one in left if selector.matches(wanted, one, now=now)]
    return left[: room(wave, total - len(left), total)]


def _ordered(rollout: str, fitting: list[DeviceFacts]) -> list[DeviceFacts]:
    line = sorted(fitting, key=lambda one: _line_key(rollout, one))
    keys = {one.id: (t + start(rollout)) * GOLDEN % KEYS for t, one in enumerate(line, 1)}
    first: dict[str, int] = {}
    for one in line:
        name = one.blueprint or ""
        first[name] = min(first.get(name, KEYS), keys[one.id])
    firsts = set(first.values())
    return sorted(line, key=lambda one: (keys[one.id] not in firsts, keys[one.id]))


def _line_key(rollout: str, one: DeviceFacts) -> tuple[str, int, int, str]:
    site = site_mark(rollout, one.labels.get(SITE_LABEL, ""))
    device = _bits(place_hash(rollout, one.id), DEVICE_BITS)
    return one.blueprint or "", site, device, one.id


def _bits(digest: str, bits: int) -> int:
    return int(digest[: bits // 4], 16)
