"""The simulated processes of the control plane: gateways and schedulers that may be killed."""

from collections.abc import Callable, Sequence
from typing import Any

from control_plane.gateway.inbox import Inbox
from control_plane.gateway.link import Publish
from control_plane.gateway.outage import OutageError
from control_plane.gateway.relay import Relay
from control_plane.jobs import ticks
from control_plane.services import presence, reports
from tests.simulation import policy
from tests.simulation.application import SimulatedApplication, is_drawn
from tests.simulation.errors import KilledError
from tests.simulation.world_parts import Surroundings

LEAST_PAUSE_S = 0.11
"""Longer than the relay sleeps when there was nothing to do."""
STEPS = 50


class Process:
    """A server process: runs pieces of work, and is started again when it was killed.

    Args:
        name: its name.
        app: its parts.
        around: clock, draws, broker.
    """

    def __init__(self, name: str, app: SimulatedApplication, around: Surroundings) -> None:
        self.name = name
        self.app = app
        self.around = around
        self.alive = False
        self._life = 0

    def start(self) -> None:
        """Come to life."""
        if not self.alive:
            self.alive = True
            self._life += 1
            self.run(self.begin)

    def begin(self) -> None:
        """Do what this process does first."""

    def end(self) -> None:
        """Lose what only memory held."""

    def run(self, act: Callable[[], None]) -> None:
        """Do something in this process, which may be killed over it."""
        if not self.alive:
            return
        self.around.clocks.born = self.around.clocks.wall_off = 0.0
        try:
            act()
        except KilledError:
            self.kill()

    def kill(self) -> None:
        if not self.alive:
            return
        self.around.trace("process.killed", self.name)
        self.around.counts["server kills"] += 1
        self.alive = False
        self._life += 1
        self.end()
        self.around.agenda.after(self.around.chance.between("restart", 1.0, 90.0), self.start)

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        life = self._life
        self.around.agenda.after(seconds, lambda: self.run(act) if life == self._life else None)


class Gateway(Process):
    """The gateway's own inbox and relay over the simulated broker."""

    def __init__(self, name: str, app: SimulatedApplication, around: Surroundings) -> None:
        super().__init__(name, app, around)
        self._connected = False
        self._flushing = self._relaying = False
        self._new_parts()

    def _new_parts(self) -> None:
        self._inbox = Inbox(self.app)
        self._relay = Relay(self.app, self.name)
        self._flushing = self._relaying = False

    # --- its end of the link: what Inbox and Relay need of it -------------------------------

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        return self.around.broker.from_gateway(self.name, topic, payload, retain=retain)

    def tell(self, topic: str, payload: bytes) -> None:
        self.around.broker.tell(topic, payload)

    def acknowledge(self, messages: Sequence[Publish]) -> None:
        for message in messages:
            self.around.broker.acknowledge(self.name, message.mid)

    # --- what the broker calls ----------------------------------------------------------------

    def deliver(self, message: Publish) -> None:
        self.run(lambda: self._take(message))

    def published(self, mid: int) -> None:
        self.run(lambda: self._published(mid))

    def cut(self) -> None:
        """Lose the connection."""
        self._connected = False
        self._inbox.forget()
        if self.alive:
            self.later(self.around.chance.between("connect", 0.5, 15.0), self._connect)

    # --- living ---------------------------------------------------------------------------------

    def begin(self) -> None:
        self._connect()

    def end(self) -> None:
        self._connected = False
        self.around.broker.disconnect_gateway(self.name)
        self._new_parts()

    def _connect(self) -> None:
        if self._connected:
            return
        if not self.around.broker.connect_gateway(self.name, self):
            self.later(self.around.chance.between("connect", 0.5, 15.0), self._connect)
            return
        self._connected = True
        self._release()

    def _release(self) -> None:
        """As the gateway does on a fresh connection: give back the leases of the one before."""
        try:
            self._relay.release()
        except OutageError:
            self.later(5.0, self._release)
            return
        self.poke()

    def _take(self, message: Publish) -> None:
        self._inbox.take(message)
        self._flush_soon(self.around.chance.between("quiet", 0.05, self.around.tempo))

    def _flush_soon(self, seconds: float) -> None:
        if not self._flushing:
            self._flushing = True
            self.later(seconds, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if not len(self._inbox):
            return
        link: Any = self
        try:
            self._inbox.flush(link)
        except OutageError:
            self._flush_soon(self.around.chance.between("retry", 0.5, 15.0))

    def poke(self) -> None:
        """Say that there may be something to publish."""
        if self.alive and self._connected and not self._relaying:
            self._relaying = True
            self.later(
                self.around.chance.between("relay", LEAST_PAUSE_S, self.around.tempo), self._publish
            )

    def _published(self, mid: int) -> None:
        self._relay.confirmed(mid)
        self.poke()

    def _publish(self) -> None:
        self._relaying = False
        link: Any = self
        if not self._connected:
            return
        try:
            self._relay.step(link)
        except OutageError:
            self.later(self.around.chance.between("retry", 0.5, 15.0), self.poke)


class Scheduler(Process):
    """Ticks soon after something has changed, else ever more seldom.

    The real one ticks every second; what it finds unchanged, it leaves unchanged.
    """

    LAST_S = 1000.0

    def __init__(self, name: str, app: SimulatedApplication, around: Surroundings) -> None:
        super().__init__(name, app, around)
        self._pause = self.around.tempo / 4
        self._turn = 0
        self.ticked_at = 0.0

    def begin(self) -> None:
        self.poke()

    def poke(self) -> None:
        """Say that something has changed."""
        self._pause = self.around.tempo / 4
        if self.alive:
            self._soon()

    def _soon(self) -> None:
        self._turn += 1
        turn = self._turn
        now = self.around.agenda.now
        pause = self._pause * self.around.chance.between("tick", 0.5, 2.0)
        for window in self.around.openings:
            pause = min(pause, policy.next_opening(window, now) - now + self.around.tempo / 4)
        self.later(pause, lambda: self._tick() if turn == self._turn else None)

    def _tick(self) -> None:
        self._pause = min(self.LAST_S, 200.0 + self._pause * 3)
        turn = self._turn
        self.ticked_at = self.around.agenda.now
        try:
            self.tick()
        except Exception as error:
            if not is_drawn(error):
                raise
        if turn == self._turn:
            self._soon()

    def tick(self) -> None:
        """Do what the scheduler's tasks do."""
        ticks.tick(lambda: self.app.reading("scheduler"), lambda: self.app.scope("scheduler"))
        if self.around.chance.happens("sweep"):
            with self.app.scope("scheduler") as scope:
                presence.sweep(scope)
                reports.forget(scope)
