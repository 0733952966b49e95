"""`flotilla simulate-fleet`: enrols the fleet, lives its life, and says what it did."""

import gc
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.protocol import envelope, topics
from agent.protocol.messages import BundleRef
from agent.protocol.trust import TrustedKeys
from control_plane.domain.errors import InvalidError
from control_plane.local.fleet_simulator import identities
from control_plane.local.fleet_simulator.downloads import Downloads
from control_plane.local.fleet_simulator.identities import Fleet, Folder, Identity
from control_plane.local.fleet_simulator.lines import Caller, Lines
from control_plane.local.fleet_simulator.population import Member, populate
from control_plane.local.fleet_simulator.profile import Profile
from control_plane.local.fleet_simulator.simulation import Part, Simulation
from control_plane.local.fleet_simulator.states import Device, Standing
from control_plane.local.fleet_simulator.tallies import REVERTED, Tallies

SPARE_FILES = 256
"""What the process opens besides one socket a device."""
GC_EVERY = 200_000
"""Allocations between two looks of the collector, which must see every device each time."""


class _Saved(msgspec.Struct, frozen=True):
    """What a device stands on between two runs."""

    boot: int
    standing: Standing


@dataclass(frozen=True)
class Wish:
    """What a person asks for.

    Args:
        devices: how many.
        profile: what they are like.
        data: folder of identities.
        seed: of every draw.
        record: file of happenings, a JSON line each; None for none.
    """

    devices: int
    profile: Profile
    data: Path
    seed: int = 1
    record: Path | None = None


@dataclass(frozen=True)
class ControlPlane:
    """What the simulator asks of the management API.

    Args:
        url: where devices enrol and download.
        token: returns an enrolment token with so many uses.
        bundles: returns, by blueprint, the bundles of a model version (MODEL, VERSION).
    """

    url: str
    token: Callable[[int], str]
    bundles: Callable[[str, str], Mapping[str, BundleRef]]


class FleetRun:
    """One run of a simulated fleet: `enroll`, then `live`, then `summary`.

    Args:
        wish: what is asked for.
        plane: the control plane.
    """

    def __init__(self, wish: Wish, plane: ControlPlane) -> None:
        check_limits(wish.devices)
        self.wish = wish
        self._plane = plane
        self._folder = Folder(wish.data)
        self._members = populate(wish.profile, wish.devices, wish.seed)
        self._fleet: Fleet | None = None
        self._identities: dict[str, Identity] = {}
        self._simulation: Simulation | None = None
        self._tallies = Tallies()
        self._began = time.monotonic()
        self._seconds = 0.0

    def enroll(self, progress: Callable[[int], None]) -> None:
        """Enrol who is not enrolled yet; errors as in `identities.enroll`."""
        self._fleet, self._identities = identities.enroll(
            self._folder,
            self._members,
            server=self._plane.url,
            fleet=(self.wish.profile.name, self.wish.seed),
            token=self._plane.token,
            progress=progress,
        )

    def live(self, begun: Callable[[Simulation], None]) -> None:
        """Connect everyone and live until somebody stops the simulation.

        Args:
            begun: called with the simulation before it begins.
        """
        assert self._fleet is not None, "enroll() first"  # noqa: S101 - a mistake of ours
        fleet, spec = self._fleet, self.wish.profile.spec
        self._tallies = Tallies(self.wish.record)
        downloads = Downloads(fleet.server, fleet.ca)
        make = partial(
            Lines, fleet.broker, fleet.ca, keepalive_s=spec.keepalive, v5=spec.mqtt == "5"
        )
        simulation = self._simulation = Simulation(
            self._parts(),
            self._states(),
            lines=make,
            vouch=Voucher(fleet.trust),
            fetch=downloads.fetch,
            tallies=self._tallies,
        )
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_EVERY, 50, 100)
        self._began = time.monotonic()
        begun(simulation)
        try:
            simulation.run()
        finally:
            self._seconds = time.monotonic() - self._began
            self._save(simulation)
            downloads.close()
            self._tallies.close()

    def summary(self) -> dict[str, Any]:
        """Return what the fleet did, and what it cost."""
        found, simulation = self._tallies, self._simulation
        used = resource.getrusage(resource.RUSAGE_SELF)
        number = len(self._members)
        cpu_s = used.ru_utime + used.ru_stime
        rss_mb = used.ru_maxrss / 1024  # kilobytes on Linux
        return {
            "devices": number,
            "seed": self.wish.seed,
            "seconds": round(self._seconds, 1),
            "connects": found.connects,
            "lost_connections": found.losses,
            "failed_connects": found.failed_dials,
            "messages_sent": found.sent,
            "messages_received": found.received,
            "messages_dropped": found.dropped,
            "messages_unread": found.unread,
            "told_to_wait": found.told_to_wait,
            "orders": dict(sorted(found.orders.items())),
            "trials": dict(sorted(found.verdicts.items())),
            "rollouts": found.ends(),
            "unacknowledged": sum(len(one.kept) for one in simulation.states) if simulation else 0,
            "cpu_s": round(cpu_s, 2),
            "rss_mb": round(rss_mb, 1),
            "cpu_ms_per_device": round(1000 * cpu_s / number, 3),
            "rss_kb_per_device": round(1024 * rss_mb / number, 1),
        }

    def _parts(self) -> list[Part]:
        return [
            self._part(member, self._identities[member.traits.name]) for member in self._members
        ]

    def _part(self, member: Member, identity: Identity) -> Part:
        credentials = self._folder.credentials(identity.device)
        caller = Caller(topics.DeviceId(identity.device), identity.secret, credentials)
        return Part(member.traits._replace(name=identity.device), caller, member.wanders)

    def _states(self) -> list[Device]:
        """Return the devices as they were left, or as they come out of the box."""
        saved = self._saved()
        first = self._first_bundles()
        boot, steady = int(time.time()), time.monotonic()  # noqa: TID251 - the epoch of a start
        states = []
        for member in self._members:
            good = first.get(member.traits.blueprint)
            floors = {} if good is None else {good.model: good.release}
            before = saved.get(self._identities[member.traits.name].device)
            standing = before.standing if before else Standing(good=good, floors=floors)
            epoch = max(boot, before.boot + 1 if before else 0)
            states.append(Device(boot=epoch, born=steady, standing=standing))
        return states

    def _first_bundles(self) -> Mapping[str, BundleRef]:
        runs = self.wish.profile.spec.runs
        if not runs:
            return {}
        model, _, version = runs.partition("@")
        found = self._plane.bundles(model, version)
        missing = self.wish.profile.spec.blueprints.keys() - found.keys()
        if missing:
            raise InvalidError(
                f"fleet profile: spec.runs: {runs} has no bundle for {min(missing)}; build it, or "
                "leave `runs` out",
                field="spec.runs",
            )
        return found

    def _saved(self) -> dict[str, _Saved]:
        try:
            return msgspec.json.decode(self._folder.standing.read_bytes(), type=dict[str, _Saved])
        except FileNotFoundError:
            return {}
        except msgspec.MsgspecError as error:
            raise InvalidError(f"{self._folder.standing}: {error}", field="--data") from error

    def _save(self, simulation: Simulation) -> None:
        saved = self._saved()  # a smaller run leaves the others as they were
        for part, state in zip(simulation.parts, simulation.states, strict=True):
            saved[part.traits.name] = _Saved(state.boot, state.standing)
        identities.write_private(self._folder.standing, msgspec.json.encode(saved))


class Voucher:
    """Checks orders as a device does, with each key parsed once."""

    def __init__(self, trust: TrustedKeys) -> None:
        self._keys: dict[str, ec.EllipticCurvePublicKey] = {}
        for name, pem in trust.order.items():
            key = serialization.load_pem_public_key(pem.encode())
            if isinstance(key, ec.EllipticCurvePublicKey):
                self._keys[name] = key

    def __call__(self, payload: bytes, signatures: dict[str, bytes]) -> bool:
        signed = envelope.pae(envelope.ORDER_TYPE, payload)
        return any(
            self._good(self._keys[name], signature, signed)
            for name, signature in signatures.items()
            if name in self._keys
        )

    def _good(self, key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes) -> bool:
        try:
            key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


def check_limits(number: int) -> None:
    """Make room for a socket a device; `InvalidError` says how many fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + SPARE_FILES
    if hard not in (resource.RLIM_INFINITY, -1) and wanted > hard:
        raise InvalidError(
            f"{number} devices need {wanted} open files, and this process may have {hard}: raise "
            "it (ulimit -Hn, LimitNOFILE=), or split the fleet over several simulators",
            field="--devices",
        )
    if soft not in (resource.RLIM_INFINITY, -1) and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def counts(simulation: Simulation) -> dict[str, int]:
    """Return the few numbers that are shown live."""
    tallies = simulation.tallies
    return {
        "connected": simulation.connected,
        "in_flight": simulation.in_flight,
        "confirmed": tallies.total("SUCCEEDED"),
        "rolled_back": tallies.total("ROLLED_BACK"),
        "failed": tallies.total("FAILED", "REJECTED"),
        "reverted": tallies.total(REVERTED),
        "messages": tallies.sent + tallies.received,
    }
