"""A simulated device: the agent's own runtime, journal, slots and machine on a disk in memory."""

import queue
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agent.config import Config, DataFolder
from agent.errors import SlotError
from agent.journal import Journal, Record
from agent.lifecycle import Activating, Benchmarking, Idle, Ordered, Standing, State, Verifying
from agent.link import Connected, Disconnected, Received
from agent.protocol import messages, topics
from agent.protocol.messages import Ack, Bench, BundleRef, Presence
from agent.protocol.messages import Event as EventReport
from agent.protocol.words import Action, ExecutionState, Reason
from agent.runtime import Item, Runtime
from agent.slots import Slots
from tests.simulation import bundles, policy
from tests.simulation.disk import MemoryFiles
from tests.simulation.errors import KilledError, ViolationError
from tests.simulation.work import Hands, SimulatedWork, drawn_trial
from tests.simulation.world_parts import Surroundings

HEARTBEAT_S = 2400.0
RESEND_S = 120.0
MOST_CHANGES = 25
"""An update changes the disk about so often: where a kill may come."""


class _Inbox:
    """The runtime's queue, without a wait: it notes how long the runtime would sleep."""

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.pause = 0.0

    def put(self, item: Item) -> None:
        self.items.append(item)

    def get(self, timeout: float) -> Item:
        if self.items:
            return self.items.popleft()
        self.pause = timeout
        raise queue.Empty


@dataclass
class Truth:
    """What really happened on a device, whatever it says."""

    runs: str = ""
    since: float = 0.0
    """Since when the active link leads there."""
    had_one: bool = False
    """Whether it ever confirmed one."""
    before: dict[str, str] = field(default_factory=dict)
    """What was last known good when the order of an execution was taken up."""
    began: set[str] = field(default_factory=set)
    """Executions that it began to activate."""
    soaks: dict[str, float] = field(default_factory=dict)
    """How long each execution's order asks for."""
    confirmed: set[tuple[str, str]] = field(default_factory=set)
    """(execution, digest) that soaked and were confirmed."""
    said: set[tuple[str, str]] = field(default_factory=set)
    """(execution, state) that it ever reported."""
    reports: dict[tuple[int, int], EventReport | Bench] = field(default_factory=dict)
    """Every event and trial, by (boot, seq)."""
    acknowledged: set[tuple[int, int]] = field(default_factory=set)


class Device:
    """One machine with an agent on it.

    Args:
        name: its id.
        blueprint: its hardware class.
        runs: the bundle that it was installed with, if any.
        around: clock, draws, broker and database.
    """

    def __init__(
        self, name: str, blueprint: str, runs: BundleRef | None, around: Surroundings
    ) -> None:
        self.name = name
        self.blueprint = blueprint
        self.truth = Truth()
        self._around = around
        self._agenda, self._chance = around.agenda, around.chance
        self.disk = MemoryFiles(self._switched)
        self._folder = DataFolder(Path("/device") / name)
        self.slots = Slots(self.disk, self._folder)
        self.journal = Journal(self.disk, self._folder)
        self._life = 0
        self._connection = 0
        self.connected = False
        self.offline_until = 0.0
        self.runtime: Runtime | None = None
        self._inbox = _Inbox()
        self._born = 0.0
        self._checked = -1
        self._wake = 0
        self.boots = 0
        if runs is not None:
            self._install(runs)

    def _install(self, ref: BundleRef) -> None:
        made = bundles.BY_DIGEST[ref.digest]
        self.slots.keep_envelope(ref.digest, made.envelope)
        part = self.slots.open_part(ref.digest, ref.size)
        for path, sha in made.names.items():
            self.disk.write(part / path, bundles.FILES[sha])
        self.slots.stage(ref.digest, made.envelope)
        self.slots.activate(ref.digest)
        standing = Standing(good=ref, floors={ref.model: ref.release})
        self.journal.save(Record(state=Idle(standing=standing)))

    def _switched(self, digest: str) -> None:
        self.truth.runs, self.truth.since = digest, self._agenda.now

    # --- life and death ---------------------------------------------------------------------

    def boot(self) -> None:
        """Start the agent."""
        if self.runtime is not None:
            return
        self._life += 1
        self.boots += 1
        self._inbox = _Inbox()
        self._born = self._agenda.now

        def start() -> None:
            runtime = self._new_runtime()
            self.runtime = runtime
            runtime._link = self
            self._connection = runtime.start() << 20

        life = self._life
        self.run(start)
        if self.runtime is not None and life == self._life:
            self._turn_soon()
            self._later(self._chance.between("connect", 0.1, 5.0), self.connect)

    def _new_runtime(self) -> Runtime:
        life = self._life
        hands = Hands(
            self._agenda,
            self._chance,
            run=lambda act: self.run(act) if life == self._life else None,
            allowed=lambda digest: self._around.may_have(self.name, digest),
        )
        work = SimulatedWork(
            slots=self.slots,
            files=self.disk,
            hands=hands,
            hand_up=self._hand_up,
            trial=lambda digest, incumbent: drawn_trial(
                self._chance, incumbent, self._around.badness(digest)
            ),
            ordered=self._ordered,
            haste=self._around.haste,
        )
        inbox: Any = self._inbox
        return Runtime(
            device=self.name,
            config=Config(blueprint=self.blueprint, heartbeat_s=HEARTBEAT_S, resend_s=RESEND_S),
            folder=self._folder,
            files=self.disk,
            journal=self.journal,
            slots=self.slots,
            work=work,
            inbox=inbox,
        )

    def run(self, act: Callable[[], None]) -> None:
        """Do something in this device's process, which may die over it."""
        clocks = self._around.clocks
        clocks.born, clocks.wall_off = self._born, 0.0
        if self._chance.happens("device_kill"):
            self.disk.dies_in = 1 + int(self._chance.between("kill at", 0, MOST_CHANGES))
        if self._chance.happens("disk"):
            self.disk.full_in = 1 + int(self._chance.between("full at", 0, MOST_CHANGES))
        try:
            act()
        except KilledError:
            self.die("killed at a write")

    def die(self, how: str) -> None:
        """End the process at once, without a word."""
        if self.runtime is None:
            return
        self._around.trace("device.killed", self.name, how)
        self._around.counts["device kills"] += 1
        self.disk.dies_in = self.disk.full_in = 0
        self.runtime = None
        self._life += 1
        self.connected = False
        self._around.broker.disconnect_device(self.name)
        record = self.journal.load()
        if record is not None:
            self._examine(record.state)
        self._agenda.after(self._chance.between("reboot", 1.0, 200.0), self.boot)

    # --- the loop ---------------------------------------------------------------------------

    def _hand_up(self, item: Item) -> None:
        self._inbox.put(item)
        self._turn_soon()

    def _turn_soon(self) -> None:
        self._wake += 1
        wake = self._wake
        self._later(0.0, lambda: self._turn() if wake == self._wake else None)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        life = self._life
        self._agenda.after(seconds, lambda: self.run(act) if life == self._life else None)

    def _turn(self) -> None:
        """Go round the runtime's loop until it would sleep, and wake it when it wants."""
        runtime = self.runtime
        if runtime is None:
            return
        record = runtime._record
        while not record.outbox and runtime._resend_at <= runtime._born + self._steady():
            runtime._resend_at += RESEND_S  # nothing to send again: the loop turns idly
        while True:
            item = runtime._next()
            if item is None:
                runtime._run_timers()
                break
            runtime._handle(item)
            runtime._run_timers()
        self._examine(runtime.state)
        runtime._next()  # says how long it would sleep now
        self._wake += 1
        wake = self._wake
        self._later(
            max(0.001, self._pause(runtime)), lambda: self._turn() if wake == self._wake else None
        )

    def _steady(self) -> float:
        return self._agenda.now - self._born

    def _pause(self, runtime: Runtime) -> float:
        if runtime._record.outbox or not self.connected:
            return self._inbox.pause
        kept, runtime._resend_at = runtime._resend_at, float("inf")
        runtime._next()
        runtime._resend_at = kept
        return self._inbox.pause

    # --- what happened ------------------------------------------------------------------------

    def _ordered(self, event: Ordered) -> None:
        order = event.order
        self.truth.soaks[order.execution] = order.soak_s

    def _examine(self, state: State) -> None:
        """Note what was confirmed, and check that the active slot can run."""
        truth = self.truth
        truth.had_one = truth.had_one or state.standing.good is not None
        if isinstance(state, Verifying | Benchmarking) and state.order.action is Action.RUN:
            good = state.standing.good
            truth.before[state.order.execution] = good.digest if good is not None else ""
        if isinstance(state, Activating) and state.order.execution not in truth.began:
            truth.began.add(state.order.execution)
            window = self._around.activation(state.order.execution)
            late = not policy.is_open(window, self._agenda.now)
            if late and state.order.action is Action.RUN:
                raise ViolationError("4 activated outside its window", f"{self.name}: {window}")
        outcome = state.standing.outcome
        if outcome is not None and outcome.state is ExecutionState.SUCCEEDED:
            done = (outcome.execution, outcome.digest)
            if done not in truth.confirmed and truth.runs == outcome.digest:
                self._confirmed(done, outcome.reason)
        if self.disk.slots_changed != self._checked:
            self._checked = self.disk.slots_changed
            self._check_slots()

    def _confirmed(self, done: tuple[str, str], reason: Reason) -> None:
        soak_s = self.truth.soaks.get(done[0], 0.0)
        ran = self._agenda.now - self.truth.since
        if reason is not Reason.ALREADY_RUNNING and ran + 1e-3 < soak_s:
            raise ViolationError("6 soak", f"{self.name} confirmed after {ran:.1f} of {soak_s} s")
        self.truth.confirmed.add(done)

    def _check_slots(self) -> None:
        active = self.slots.active()
        if not active:
            if self.truth.had_one:
                raise ViolationError("1 runnable", f"{self.name} had a model and has none")
            return
        try:
            self.slots.verify(active)
        except SlotError as error:
            raise ViolationError("1 runnable", f"{self.name}: {error}") from error

    # --- the line -----------------------------------------------------------------------------

    def connect(self) -> None:
        """Try to reach the broker, and again until it takes us."""
        if self.connected or self.runtime is None:
            return
        self._connection += 1
        offline = self._agenda.now < self.offline_until
        if offline or not self._around.broker.connect_device(
            self.name, self, self._presence(online=False)
        ):
            away = max(self.offline_until - self._agenda.now, 0.0) if offline else 0.0
            self._later(away + self._chance.between("connect", 1.0, 60.0), self.connect)
            return
        self.connected = True
        self._send("presence", self._presence(online=True))
        self._hand_up(Connected(self._connection))

    def _presence(self, *, online: bool) -> bytes:
        return messages.encode(Presence(online=online, connection=self._connection))

    def start(self) -> None:
        """Of the runtime's port for a link: unused, the simulation connects."""

    def stop(self) -> None:
        """Of the runtime's port for a link: unused, devices are killed."""

    def publish(
        self,
        channel: str,
        message: bytes,
        *,
        retain: bool = False,  # noqa: ARG002 - the port's
        qos: int = 1,  # noqa: ARG002 - the port's
    ) -> None:
        if channel in {"events", "bench"}:
            self._note(channel, message)
        if self.connected:
            self._send(channel, message)

    def _note(self, channel: str, message: bytes) -> None:
        report: EventReport | Bench
        if channel == "events":
            report = messages.decode(message, EventReport)
        else:
            report = messages.decode(message, Bench)
        if (report.boot, report.seq) in self.truth.reports:
            return
        self.truth.reports[report.boot, report.seq] = report
        if isinstance(report, EventReport):
            self.truth.said.add((report.execution, report.state.value))
            self._around.trace("device.said", self.name, report.execution, report.state.value)

    def _send(self, channel: str, message: bytes) -> None:
        topic = topics.up(topics.DeviceId(self.name), channel)
        self._around.broker.from_device(self.name, topic, message)

    def receive(self, channel: str, payload: bytes) -> None:
        """Take what the broker brings."""
        if channel == "ack":
            for boot, seq in messages.decode(payload, Ack).reports:
                self.truth.acknowledged.add((boot, seq))
                self._around.check_ack(self.name, boot, seq)
        self._hand_up(Received(channel, payload))

    def cut(self) -> None:
        """Lose the connection, and look for another."""
        if not self.connected:
            return
        self.connected = False
        self._around.broker.disconnect_device(self.name)
        self._hand_up(Disconnected())
        self._later(self._chance.between("connect", 1.0, 120.0), self.connect)

    def leave(self, seconds: float) -> None:
        """Be out of reach for a while; the agent goes on."""
        self.offline_until = self._agenda.now + seconds
        self.cut()

    # --- at the end -----------------------------------------------------------------------------

    def record(self) -> Record:
        """Return the journal's newest record."""
        found = self.journal.load()
        return found if found is not None else msgspec.structs.replace(Record())

    @property
    def busy(self) -> bool:
        """Whether something is under way, or unacknowledged."""
        runtime = self.runtime
        if runtime is None or not self.connected or self._inbox.items:
            return True
        return not isinstance(runtime.state, Idle) or bool(runtime._record.outbox)
