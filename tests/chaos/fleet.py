"""A simulated fleet in this process, and all that its devices saw and said."""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec

from agent.protocol import topics
from agent.protocol.enrollment import Broker, EnrollRequest
from agent.protocol.messages import Bench, BundleRef, Event, Order
from agent.protocol.words import Reason
from control_plane.bootstrap import Application
from control_plane.local.fleet_simulator import profile as profiles
from control_plane.local.fleet_simulator.lines import Caller, Ears, Lines
from control_plane.local.fleet_simulator.population import populate
from control_plane.local.fleet_simulator.run import Voucher
from control_plane.local.fleet_simulator.simulation import Part, Simulation
from control_plane.local.fleet_simulator.states import Device, Standing
from control_plane.local.fleet_simulator.tallies import Tallies
from control_plane.local.fleet_simulator.turn import digest_of as digest_of_bundle
from control_plane.local.fleet_simulator.turn import running
from control_plane.services import enrollment
from tests.chaos.evidence import Heard, Said, SaidKey
from tests.support import seed_bundles
from tests.support.brokers import request_for
from tests.support.seed_rows import MODEL, digest_of

FIRST = "1.0.0"
REPORTS = frozenset({"events", "bench"})
SITES = ("vie", "fra", "dub", "waw")
BLUEPRINTS = ("x86-64-vnni", "x86-64-avx2")
MOST_ROUNDS = 400


class Witness(Tallies):
    """Remembers every order heard, every report made and every acknowledgement that came."""

    def __init__(self) -> None:
        super().__init__()
        self.boots: dict[str, int] = {}
        self.heard: list[Heard] = []
        self.said: dict[SaidKey, Said] = {}
        self.acked: set[SaidKey] = set()

    def ordered(self, wall: float, order: Order) -> None:
        super().ordered(wall, order)
        words = (order.action.value, order.execution, order.rollout)
        self.heard.append(Heard(order.device, order.generation, *words))

    def reported(self, wall: float, device: str, report: Event | Bench) -> None:
        super().reported(wall, device, report)
        key = SaidKey(device, report.boot, report.seq)
        if isinstance(report, Event):
            facts = report.state.value, report.reason.value, report.digest
        else:
            facts = "", report.verdict.value, report.candidate
        self.said[key] = Said(report.execution, report.generation, *facts)

    def note(self, wall: float, what: str, device: str, **more: Any) -> None:
        super().note(wall, what, device, **more)
        if what == "acked":
            self.acked.add(SaidKey(device, self.boots[device], more["seq"]))


class _CountingLines(Lines):
    """Counts the reports that leave, and how many of them left before."""

    def __init__(self, broker: Broker, ears: Ears, **how: Any) -> None:
        super().__init__(broker, "", ears, **how)
        self.left: Counter[tuple[int, bytes]] = Counter()

    def publish(self, number: int, channel: str, message: bytes, qos: int) -> bool:
        gone = super().publish(number, channel, message, qos)
        if gone and channel in REPORTS:
            self.left[number, message] += 1
        return gone


class ChaosFleet:
    """Enrolled devices, each with a connection of its own; a context manager that runs them.

    Args:
        app: the control plane's parts.
        port: the broker's.
        devices: how many.
        seed: of every draw.
    """

    def __init__(self, app: Application, port: int, devices: int, seed: int) -> None:
        self.witness = Witness()
        self.passwords: dict[str, str] = {}
        self._failure: list[BaseException] = []
        wanted = profile()
        parts, states = [], []
        key = ec.generate_private_key(ec.SECP256R1())
        boot, steady = int(time.time()), time.monotonic()  # noqa: TID251 - the epoch of a start
        seed_bundles.seed(app)
        with app.scope("chaos") as scope:
            token = enrollment.create_token(scope, uses=devices)
            for member in populate(wanted, devices, seed):
                traits = member.traits
                reply = enrollment.enroll(
                    scope,
                    EnrollRequest(
                        token=token,
                        csr=request_for(key, traits.name),
                        hardware=traits.hardware,
                        blueprint=traits.blueprint,
                        labels=member.labels,
                    ),
                )
                self.passwords[traits.name] = reply.secret
                caller = Caller(topics.DeviceId(traits.name), reply.secret, Path())
                parts.append(Part(traits, caller, wanders=False))
                good = _bundle(FIRST, 1, traits.blueprint)
                standing = Standing(good=good, floors={MODEL: 1})
                states.append(Device(boot=boot, born=steady, standing=standing))
                self.witness.boots[traits.name] = boot
        broker = Broker(host="127.0.0.1", port=port, tls=False)
        keep = wanted.spec.keepalive
        self._lines: _CountingLines | None = None

        def lines(ears: Ears) -> Lines:
            self._lines = _CountingLines(broker, ears, keepalive_s=keep, v5=False)
            return self._lines

        self.simulation = Simulation(
            parts,
            states,
            lines=lines,
            vouch=Voucher(app.keyring.trusted_keys()),
            fetch=lambda _caller, _order: Reason.NONE,
            tallies=self.witness,
        )
        self._thread = threading.Thread(target=self._live, name="fleet", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.simulation.stop()
        self._thread.join(30)
        if self._failure:
            raise RuntimeError("the fleet itself failed") from self._failure[0]

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def unacknowledged(self) -> int:
        """How many reports devices still keep."""
        return sum(len(one.kept) for one in self.simulation.states)

    @property
    def generations(self) -> dict[str, int]:
        """The order that each device has carried out."""
        pairs = zip(self.simulation.parts, self.simulation.states, strict=True)
        return {part.traits.name: state.standing.generation for part, state in pairs}

    @property
    def runs(self) -> dict[str, str]:
        """The digest of what each device runs."""
        pairs = zip(self.simulation.parts, self.simulation.states, strict=True)
        return {part.traits.name: digest_of_bundle(running(state)) for part, state in pairs}

    def sent(self) -> tuple[int, int]:
        """Return how many reports left, and how many of those had left before."""
        assert self._lines is not None
        left = self._lines.left
        total = sum(left.values())
        return total, total - len(left)

    def _live(self) -> None:
        try:
            self.simulation.run()
        except BaseException as error:  # noqa: BLE001 - told when the fleet is left
            self._failure.append(error)


def profile() -> profiles.Profile:
    """Return what the fleet is like: quick, on a bad line, with versions that are no good."""
    bad = {"failures": {"soaking": {"rolled_back": 1.0}}}
    slow = {"slowdown": 1.6}
    versions = {f"2.{k}.1": bad if k % 2 else slow for k in range(MOST_ROUNDS)}
    spec = {
        "runs": f"{MODEL}@{FIRST}",
        "blueprints": {
            name: {"share": 1, "arch": "x86_64", "cores": 8, "memory_mb": 16384}
            for name in BLUEPRINTS
        },
        "sites": dict.fromkeys(SITES, 1.0),
        "link": {
            "latency": {"median": 0.005, "spread": 2.0},
            "seconds_per_mb": 0.01,
            "duplicates": 0.2,
            "reordered": 0.2,
        },
        "trial": {"seconds": 0.1},
        "versions": versions,
        "heartbeat": 10.0,
        "resend": 0.7,
        "keepalive": 30.0,
        "reconnect": {"base": 0.1, "cap": 0.5},
        "connects_per_second": 1000,
    }
    document = {"apiVersion": "flotilla/v1", "kind": "FleetProfile"}
    return profiles.parse({**document, "metadata": {"name": "chaos"}, "spec": spec})


def _bundle(version: str, release: int, blueprint: str) -> BundleRef:
    digest = digest_of(version, blueprint)
    return BundleRef(digest=digest, model=MODEL, version=version, release=release, size=1_000_000)
