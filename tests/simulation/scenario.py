"""What one seed is about: the fleet, the rollouts, what people do, and how often things break."""

from dataclasses import dataclass, field
from typing import Any

from tests.simulation import bundles
from tests.simulation.chance import Chance
from tests.simulation.seeding import NewDevice

SITES = ("north", "south")


@dataclass(frozen=True)
class Act:
    """Something that a person does."""

    at: float
    """Seconds after the beginning."""
    verb: str
    rollout: str = ""
    device: str = ""
    document: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """One seed's story."""

    devices: tuple[NewDevice, ...]
    documents: tuple[dict[str, Any], ...]
    acts: tuple[Act, ...]
    rates: dict[str, float]
    badness: dict[str, float]
    """Share of bad trials, by version."""
    faults_s: float
    """How long things break."""
    gateways: int
    schedulers: int
    tempo: float


VERBS = ("pause", "resume", "promote", "approve", "abort", "abort_revert", "revert", "retry")
_RATES = {
    "loss": (0.01, 0.08),
    "duplicate": (0.05, 0.25),
    "delay": (0.02, 0.20),
    "offline": (0.3, 0.9),
    "device_kill": (0.005, 0.04),
    "disk": (0.005, 0.03),
    "gateway_kill": (0.01, 0.10),
    "scheduler_kill": (0.01, 0.10),
    "outage": (0.01, 0.10),
    "broker_crash": (1.0, 1.0),
    "broker_forgets": (0.5, 1.0),
    "bad_trial": (1.0, 1.0),
    "bad_probe": (0.02, 0.15),
    "bad_download": (0.02, 0.15),
    "quarantine": (1.0, 1.0),
    "people": (1.0, 1.0),
}
_OFTEN = ("bad_trial", "people", "offline", "broker_forgets")


def draw(chance: Chance, *, storm: bool = False) -> Scenario:
    """Draw the story of a seed; in a storm every kind of fault happens."""
    story = chance.stream("story")
    storm = (story.random() < 0.15) or storm
    rates = {
        fault: low + (high - low) * story.random()
        for fault, (low, high) in _RATES.items()
        if storm or story.random() < (0.65 if fault in _OFTEN else 0.35)
    }
    rates["sweep"] = 0.02
    chance.set_rates(rates)
    count = 2 + min(int(story.expovariate(1.0)), 4)
    devices = tuple(_device(chance, number) for number in range(count))
    rollouts = 1 if story.random() < 0.65 and not storm else 2
    documents = tuple(_document(chance, number, count) for number in range(rollouts))
    faults_s = 400.0 + 1800.0 * story.random()
    badness = {version: 0.5 if story.random() < 0.6 else 0.0 for version in bundles.VERSIONS}
    return Scenario(
        devices=devices,
        documents=documents,
        acts=_acts(chance, documents, devices, faults_s),
        rates=rates,
        badness=badness,
        faults_s=faults_s,
        gateways=1 + (story.random() < 0.6),
        schedulers=1 + (story.random() < 0.6),
        tempo=story.choice((4.0, 20.0, 60.0)),
    )


def _device(chance: Chance, number: int) -> NewDevice:
    draw = chance.stream("fleet")
    blueprint = bundles.BLUEPRINTS[int(draw.random() * 1.6)]
    first = draw.random() < 0.1
    digest = "" if first else bundles.MADE["1.0.0", blueprint].ref.digest
    return NewDevice(f"edge-{number}", blueprint, digest, SITES[number % 2])


def _document(chance: Chance, number: int, count: int) -> dict[str, Any]:
    version = bundles.VERSIONS[number + 1]
    return {
        "apiVersion": "flotilla/v1",
        "kind": "Rollout",
        "metadata": {"name": f"slm-{version}"},
        "spec": {"model": bundles.MODEL, "version": version, **_spec(chance, count)},
    }


def _spec(chance: Chance, count: int) -> dict[str, Any]:
    draw = chance.stream("spec")
    waves: list[dict[str, Any]] = [{"name": "everyone", "percent": 100}]
    if draw.random() < 0.75:
        waves.insert(0, {"name": "canary", "count": 1 + int(draw.random() * 2)})
    if count > 3 and draw.random() < 0.4:
        waves.insert(-1, {"name": "half", "percent": 60})
    if draw.random() < 0.15:
        waves[-1]["approval"] = "required"
    spec: dict[str, Any] = {
        "waves": waves,
        "soak": f"{draw.choice((0, 0, 30, 200))}s",
        "pace": {"max_in_flight": draw.choice((1, 1, 2, 3, 10)), "per_minute": 60},
        "gates": {
            "max_failures": draw.choice((0, 0, 0, 1, 2)),
            "min_answered": draw.choice((1.0, 1.0, 0.5)),
            "scope": draw.choice(("rollout", "rollout", "blueprint")),
        },
        "timeouts": {
            "silent": f"{draw.choice((400, 900, 2700))}s",
            "execution": f"{draw.choice((900, 1800, 5400))}s",
        },
        "trial": {"retry": "120s"},
        "on_breach": draw.choice(("halt", "halt", "revert")),
    }
    return spec


def _acts(
    chance: Chance,
    documents: tuple[dict[str, Any], ...],
    devices: tuple[NewDevice, ...],
    last_s: float,
) -> tuple[Act, ...]:
    draw = chance.stream("acts")
    names = [document["metadata"]["name"] for document in documents]
    acts = [Act(5.0, "create", document=documents[0])]
    acts += [Act(draw.random() * 0.6 * last_s, "create", document=one) for one in documents[1:]]
    people = [
        Act(draw.random() * last_s, draw.choice(VERBS), rollout=draw.choice(names))
        for _ in range(int(draw.random() * 5))
    ]
    if chance.allowed("people"):
        acts += people
    stolen = draw.choice(devices).name
    at = draw.random() * 0.5 * last_s
    if chance.allowed("quarantine"):
        acts.append(Act(at, "quarantine", device=stolen))
        acts.append(Act(at + draw.random() * 0.5 * last_s, "unquarantine", device=stolen))
    return tuple(sorted(acts, key=lambda act: act.at))
