"""PURE: who is in a simulated fleet: each device's name, class, labels and character."""

from typing import NamedTuple

from control_plane.local.fleet_simulator.draws import Draws
from control_plane.local.fleet_simulator.profile import Profile
from control_plane.local.fleet_simulator.states import Traits


class Member(NamedTuple):
    """A device to be."""

    traits: Traits
    labels: dict[str, str]
    wanders: bool
    """It comes and goes, as the profile's `offline` says."""


def populate(profile: Profile, devices: int, seed: int) -> list[Member]:
    """Return the devices; the first n of a larger fleet are the fleet of n."""
    return [_member(profile, f"{profile.name}-{i + 1:05}", seed) for i in range(devices)]


def _member(profile: Profile, name: str, seed: int) -> Member:
    spec, draws = profile.spec, Draws(seed, name)
    kind = draws.choice({key: one.share for key, one in spec.blueprints.items()}, "blueprint")
    labels = {key: draws.choice(shares, "label", key) for key, shares in spec.labels.items()}
    if spec.sites:
        labels["site"] = draws.choice(spec.sites, "label", "site")
    own = spec.blueprints[kind]
    speed = own.speed * draws.lognormal(1.0, 1 + spec.trial.device_noise, "speed")
    traits = Traits(name, kind, own.hardware(), speed, spec, draws)
    return Member(traits, labels, draws.happens(spec.offline.share, "wanders"))
