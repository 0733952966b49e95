"""One seed's world: everything of Flotilla that decides, on simulated time; run to its end."""

import hashlib
import traceback
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

from control_plane.config import Settings
from control_plane.domain.errors import FlotillaError
from control_plane.services import enrollment
from tests.simulation import bundles, ending, people, ports, seeding
from tests.simulation.agenda import START
from tests.simulation.application import MemoryDatabase, SimulatedApplication, is_drawn
from tests.simulation.broker import Broker
from tests.simulation.chance import Chance
from tests.simulation.device import Device
from tests.simulation.errors import ViolationError
from tests.simulation.facts import Reader, Rollout
from tests.simulation.people import NOBODY, Act
from tests.simulation.safety import Safety
from tests.simulation.scenario import PLAIN, Lean, Scenario, draw
from tests.simulation.server import Gateway, Process, Scheduler
from tests.simulation.world_parts import Surroundings

OUTBOX_LOOK_S = 20.0
BROKER_CRASHES = 2


@dataclass(frozen=True)
class Outcome:
    """What became of a seed."""

    seed: int
    rule: str
    """The invariant that does not hold; empty: all hold."""
    why: str
    hash: str
    """Of the whole trace: the same for the same seed and the same code."""
    hours: float
    steps: int
    counts: Counter[str]
    ends: Counter[str]
    trace: list[str]


class World:
    """A fleet, a control plane and a broker, on one clock.

    Args:
        seed: decides everything.
        database: shared by all worlds of this process, one after the other.
        off: faults to leave out.
        lean: what its story leans towards.
    """

    def __init__(
        self,
        seed: int,
        database: MemoryDatabase,
        off: frozenset[str] = frozenset(),
        lean: Lean = PLAIN,
    ) -> None:
        self.seed = seed
        self.clocks = ports.Clocks()
        self.agenda = self.clocks.agenda
        self.chance = Chance(seed, off)
        self.scenario: Scenario = draw(self.chance, lean)
        self.database = database
        database.reset()
        self.lines: list[str] = []
        self.broker = Broker(self.agenda, self.chance)
        self.around = Surroundings(
            self.agenda,
            self.chance,
            self.clocks,
            self.broker,
            self.trace,
            self.may_have,
            self.check_ack,
            lambda digest: self.scenario.badness[bundles.BY_DIGEST[digest].ref.version],
            self.activation,
            self.scenario.windows,
            self.scenario.haste,
            self.scenario.tempo,
        )
        self.people = self._app("people", "people")
        self.gateways = [
            Gateway(f"gateway-{n}", self._app("gateway", f"gateway-{n}"), self.around)
            for n in range(self.scenario.gateways)
        ]
        self.schedulers = [
            Scheduler(f"scheduler-{n}", self._app("scheduler", f"scheduler-{n}"), self.around)
            for n in range(self.scenario.schedulers)
        ]
        self.devices: dict[str, Device] = {}
        for new in self.scenario.devices:
            ref = bundles.BY_DIGEST[new.digest].ref if new.digest else None
            self.devices[new.name] = Device(new.name, new.blueprint, ref, self.around)
        self.reader = Reader(database.raw)
        self.safety = Safety(
            {name: device.truth for name, device in self.devices.items()},
            {new.name: new.site for new in self.scenario.devices},
            lambda: self.agenda.now,
        )
        with database.transaction() as tx:
            seeding.devices(tx, self.agenda.date, self.scenario.devices)
            for one in self.scenario.builds:
                seeding.unbuild(tx, one.document["version"], one.document["blueprint"])
        self.facts = self.reader.read()
        self.acting = NOBODY
        self.acts_left = 0
        self.changed_at = self.agenda.now
        self.commits = 0

    def _app(self, kind: str, name: str) -> SimulatedApplication:
        settings = _SETTINGS.model_copy(update={"gateway_name": name})
        return SimulatedApplication(
            self.database,
            settings,
            self.agenda,
            self.chance,
            kind=kind,
            committed=lambda: self.committed(name),
        )

    # --- telling --------------------------------------------------------------------------------

    def trace(self, kind: str, *facts: object) -> None:
        """Note what happened."""
        told = " ".join(map(str, facts))
        self.lines.append(f"{self.agenda.now - START:10.3f} {kind} {told}")

    # --- what others ask ------------------------------------------------------------------------

    def committed(self, who: str) -> None:
        """Check every invariant: somebody has just committed."""
        self.commits += 1
        before, after = self.facts, self.reader.read()
        self._tell(who, after)
        self.safety.check(before, after, self.reader.fresh_reports(), self.acting)
        self.facts = after
        changed = (before.parts, before.rollouts, before.wanted) != (
            after.parts,
            after.rollouts,
            after.wanted,
        )
        for rollout in after.rollouts.values():
            self._ask(before.rollouts.get(rollout.name), rollout)
        if changed:
            self.changed_at = self.agenda.now
            if not who.startswith("scheduler"):  # a tick goes as far as it can by itself
                self.chance.pick("which", self.schedulers).poke()
        if before.wanted != after.wanted or self.reader.count("outbox"):
            self.chance.pick("which", self.gateways).poke()

    def _ask(self, known: Rollout | None, rollout: Rollout) -> None:
        """Let people answer a wave that begins to wait for them."""
        was = None if known is None else known.state
        if rollout.state == "AWAITING_APPROVAL" != was and not self.chance.calm:
            for act in people.asked(self.chance, rollout.name):
                self.later_act(act.at, act)

    def activation(self, execution: str) -> dict[str, Any] | None:
        """Return the activation window of an execution's rollout, as its document has it."""
        part = self.facts.parts.get(execution)
        if part is None:
            return None
        window: dict[str, Any] | None = (
            self.facts.rollouts[part.rollout].spec.get("windows", {}).get("activate")
        )
        return window

    def _tell(self, who: str, after: Any) -> None:
        for key, part in after.parts.items():
            known = self.facts.parts.get(key)
            if known is not part and known != part:
                was = known.state if known else "-"
                self.trace("commit", who, part.device, key, was, ">", part.state, part.reason)
        for name, rollout in after.rollouts.items():
            old = self.facts.rollouts.get(name)
            if old is not rollout:
                wave = rollout.machine.get("wave")
                self.trace("commit", who, name, old and old.state, ">", rollout.state, wave)
        for device, one in after.wanted.items():
            if self.facts.wanted.get(device) != one:
                self.trace("commit", who, "wants", *one)

    def check_ack(self, device: str, boot: int, seq: int) -> None:
        """Check that what is acknowledged is committed: the device forgets it now."""
        if not self.reader.is_seen(device, boot, seq):
            raise ViolationError("5 acknowledged and lost", (device, boot, seq))

    def may_have(self, device: str, digest: str) -> bool:
        """Ask the server for a bundle, as the device's download does."""
        try:
            with self.people.reading("device") as scope:
                known = enrollment.authenticate_device(scope, device)
                enrollment.bundle_envelope(scope, known, digest)
        except FlotillaError:
            return False
        return True

    # --- what people do ---------------------------------------------------------------------------

    def act(self, act: Act) -> bool:
        """Do what a person does; return whether it was legal."""
        self.acting = act
        try:
            with self.people.scope(act.who) as scope:
                people.do(scope, act)
        except FlotillaError as error:
            self.trace("act.refused", act.verb, act.rollout or act.device, type(error).__name__)
            return False
        except Exception as error:
            if not is_drawn(error):
                raise
            self.trace("act.outage", act.verb)
            self.later_act(15.0, act)
            return True
        finally:
            self.acting = NOBODY
        self.trace("act", act.verb, act.rollout or act.device, act.who)
        self.around.counts["acts"] += 1
        return True

    def later_act(self, seconds: float, act: Act) -> None:
        self.acts_left += 1

        def now() -> None:
            self.acts_left -= 1
            self.act(act)

        self.agenda.after(seconds, now)

    # --- the run ----------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Live through the seed's story, let the faults end, and bring everything to its end."""
        rule = why = ""
        try:
            with ports.simulated(self.clocks, self.scenario.sweep, self.scenario.offers):
                self._begin()
                while self.agenda.now < START + self.scenario.faults_s:
                    self.agenda.step()
                ending.bring_to_an_end(self)
        except ViolationError as error:
            rule, why = error.rule, str(error)
        except Exception as error:  # noqa: BLE001 - whatever is raised here, a seed found it
            rule, why = type(error).__name__, "".join(traceback.format_exception(error))
        digest = hashlib.sha256("\n".join([*self.lines, why]).encode()).hexdigest()
        counts = self.around.counts
        counts["commits"] = self.commits
        counts["broker crashes"] = self.broker.crashes
        counts["lost messages"] = self.broker.lost
        counts["reports"] = sum(len(d.truth.reports) for d in self.devices.values())
        ends = Counter(rollout.state for rollout in self.facts.rollouts.values())
        hours = (self.agenda.now - START) / 3600
        return Outcome(
            self.seed, rule, why, digest, hours, self.agenda.steps, counts, ends, self.lines
        )

    def _begin(self) -> None:
        servers: list[Process] = [*self.gateways, *self.schedulers]
        for process in servers:
            process.start()
        for device in self.devices.values():
            self.agenda.after(self.chance.between("boot", 0.0, 5.0), device.boot)
        for act in (*self.scenario.acts, *self.scenario.builds):
            self.later_act(act.at, act)
        self._plan_faults()
        self._look()

    def _plan_faults(self) -> None:
        """Draw what breaks by itself, and not at an occasion."""
        most = self.scenario.faults_s
        chance = self.chance
        for device in self.devices.values():
            if chance.happens("offline"):
                seconds = chance.between("offline for", 10.0, most)
                at = chance.between("offline at", 0.0, most)
                self.agenda.after(at, partial(device.leave, seconds))
            if chance.allowed("device_kill"):
                at = chance.between("killed at", 0.0, most)
                self.agenda.after(at, partial(device.die, "killed at rest"))
        for _ in range(BROKER_CRASHES if chance.allowed("broker_crash") else 0):
            forgets = chance.happens("broker_forgets")
            away = chance.between("broker away", 1.0, 120.0)
            at = chance.between("broker at", 0.0, most)
            self.agenda.after(at, partial(self._crash_broker, away, forgets))

    def _crash_broker(self, away_s: float, forgets: bool) -> None:  # noqa: FBT001 - drawn
        self.trace("broker.crashed", "forgets" if forgets else "")
        self.broker.crash(away_s, forgets=forgets)

    def _look(self) -> None:
        """Let the relays look now and then, as they do: a lease may have run out."""
        if self.reader.count("outbox"):
            for gateway in self.gateways:
                gateway.poke()
        self.agenda.after(OUTBOX_LOOK_S, self._look)


_SETTINGS = Settings(mqtt_host="simulated", share_group="simulated")
