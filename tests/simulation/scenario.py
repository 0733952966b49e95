"""What one seed is about: the fleet, the rollouts, what people do, and how often things break."""

from dataclasses import dataclass
from typing import Any

from tests.simulation import bundles, people, policy
from tests.simulation.chance import Chance
from tests.simulation.people import Act
from tests.simulation.seeding import NewDevice

SITES = ("north", "south")


@dataclass(frozen=True)
class Lean:
    """What a story leans towards, so that few seeds show what is looked for."""

    storm: bool = False
    """Every kind of fault happens."""
    large: bool = False
    """More devices, more rollouts, more time."""
    policy: tuple[str, ...] = ()
    """What each document asks for."""
    verbs: tuple[str, ...] = ()
    """What people do."""


PLAIN = Lean()


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
    haste: float
    windows: tuple[dict[str, Any], ...]
    builds: tuple[Act, ...]
    """Those that are not there yet, with their end."""
    sweep: int
    """Devices that one transaction takes back at most."""
    offers: int
    """Devices that one transaction offers at most."""


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


def draw(chance: Chance, lean: Lean = PLAIN) -> Scenario:
    """Draw the story of a seed."""
    story = chance.stream("story")
    storm = (story.random() < 0.10) or lean.storm
    rates = {
        fault: low + (high - low) * story.random()
        for fault, (low, high) in _RATES.items()
        if storm or story.random() < (0.65 if fault in _OFTEN else 0.35)
    }
    rates["sweep"] = 0.02
    chance.set_rates(rates)
    # Most stories are short ones: a thousand of them find more than a few hundred long ones.
    small = story.random() < 0.6 and not (storm or lean.large)
    count = 2 if small else 2 + min(int(story.expovariate(1.0)), 5)
    devices = tuple(_device(chance, number) for number in range(count))
    rollouts = 1
    if not small:
        rollouts += (storm or story.random() < 0.5) + (story.random() < 0.15)
    faults_s = 300.0 + (600.0 if small else 1900.0) * story.random()
    spec = chance.stream("spec")
    documents = tuple(
        policy.document(spec, number, count, faults_s, lean.policy) for number in range(rollouts)
    )
    badness = {version: 0.5 if story.random() < 0.6 else 0.0 for version in bundles.VERSIONS}
    return Scenario(
        devices=devices,
        documents=documents,
        acts=people.planned(chance, documents, devices, faults_s, lean.verbs),
        rates=rates,
        badness=badness,
        faults_s=faults_s,
        gateways=1 + (story.random() < 0.6),
        schedulers=1 + (story.random() < 0.6),
        tempo=story.choice((4.0, 20.0, 60.0)),
        haste=story.choice((0.05, 0.05, 1.0)),
        windows=tuple(
            window
            for document in documents
            for window in document["spec"].get("windows", {}).values()
        ),
        builds=_builds(chance, rollouts, faults_s),
        sweep=story.choice((1, 2, 1000)),
        offers=story.choice((1, 2000, 2000)),
    )


def _device(chance: Chance, number: int) -> NewDevice:
    draw = chance.stream("fleet")
    blueprint = bundles.BLUEPRINTS[int(draw.random() * 1.6)]
    first = draw.random() < 0.1
    digest = "" if first else bundles.MADE["1.0.0", blueprint].ref.digest
    return NewDevice(
        f"edge-{number}", blueprint, digest, SITES[number % 2], ring=draw.random() < 0.85
    )


def _builds(chance: Chance, rollouts: int, faults_s: float) -> tuple[Act, ...]:
    """Draw which builds are not there when their rollout is made, and what becomes of them."""
    draw = chance.stream("builds")
    wanted = [(v, b) for v in bundles.VERSIONS[1 : rollouts + 1] for b in bundles.BLUEPRINTS]
    return tuple(
        Act(
            draw.random() * 0.8 * faults_s,
            "build",
            document={"version": version, "blueprint": name, "good": draw.random() < 0.8},
        )
        for version, name in wanted
        if draw.random() < 0.06
    )
