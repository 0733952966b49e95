"""Devices, orders and profiles for tests of the simulated fleet."""

from typing import Any

from agent.protocol.messages import BundleRef, Order, TrialPolicy
from agent.protocol.words import Action
from control_plane.local.fleet_simulator.device import take
from control_plane.local.fleet_simulator.draws import Draws
from control_plane.local.fleet_simulator.population import populate
from control_plane.local.fleet_simulator.profile import Profile, parse
from control_plane.local.fleet_simulator.states import (
    Came,
    Device,
    Happening,
    Moment,
    Standing,
    Step,
    Traits,
)

NOW = Moment(wall=1_800_000_000.0, steady=1000.0)


def profile(**spec: Any) -> Profile:
    """Return a profile of one class, without any chance in it unless `spec` says so."""
    calm = {
        "blueprints": {"board": {}},
        "link": {"latency": {"median": 0, "spread": 1}, "seconds_per_mb": 0},
        "trial": {"seconds": 1, "device_noise": 0, "trial_noise": 0, "block_noise": 0},
    }
    return parse(
        {
            "apiVersion": "flotilla/v1",
            "kind": "FleetProfile",
            "metadata": {"name": "sim"},
            "spec": {**calm, **spec},
        }
    )


def traits(draws: Draws | None = None, **spec: Any) -> Traits:
    """Return the first device of such a fleet."""
    found = populate(profile(**spec), 1, seed=1)[0].traits
    return found if draws is None else found._replace(draws=draws)


def bundle(version: str, release: int) -> BundleRef:
    return BundleRef(f"{release:064x}", "support-slm", version, release, 1_000_000)


def order(who: Traits, generation: int, wanted: BundleRef | None, **more: Any) -> Order:
    fields: dict[str, Any] = {
        "order": f"o{generation}",
        "device": who.name,
        "generation": generation,
        "issued": 0,
        "expires": int(NOW.wall) + 86_400,
        "action": Action.RUN,
        "rollout": "r",
        "execution": f"x{generation}",
        "bundle": wanted,
        "trial": TrialPolicy(),
    }
    return Order(**{**fields, **more})


def born(good: BundleRef | None = None) -> Device:
    return Device(boot=1, born=NOW.steady, standing=Standing(good=good))


class Life:
    """A device that lives through events, one after another, and everything it did."""

    def __init__(self, who: Traits, device: Device, *, connected: bool = True) -> None:
        self.traits = who
        self.device = device
        self.now = NOW
        self.done: list[Any] = []
        if connected:
            self.take(Came())

    def take(self, event: Happening) -> Step:
        step = take(self.traits, self.device, event, self.now)
        self.device = step[0]
        self.done += step[1]
        return step

    def wait(self, seconds: float) -> None:
        self.now = Moment(self.now.wall + seconds, self.now.steady + seconds)
