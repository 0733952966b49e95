"""The broker: delivers at least once, late, twice, out of order, or not; and it may crash.

A message is lost only with its connection, as TCP has it: whoever lost one is cut off soon after,
and greets again when it is back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from agent.protocol import topics
from control_plane.gateway.link import Publish
from tests.simulation.agenda import Agenda
from tests.simulation.chance import Chance

WILL_DELAY_S = 10.0
SLOWEST_S = 2.0


class Consumer(Protocol):
    """A gateway, as the broker sees it."""

    def deliver(self, message: Publish) -> None: ...
    def published(self, mid: int) -> None: ...
    def cut(self) -> None: ...


class Receiver(Protocol):
    """A device, as the broker sees it."""

    def receive(self, channel: str, payload: bytes) -> None: ...
    def cut(self) -> None: ...


@dataclass
class Session:
    """What the broker keeps for a gateway, connected or not."""

    consumer: Consumer | None = None
    unacknowledged: dict[int, Publish] = field(default_factory=dict)


@dataclass
class _Will:
    topic: str
    payload: bytes


class Broker:
    """One broker that all gateways and devices share.

    Args:
        agenda: the clock.
        chance: the draws.
    """

    def __init__(self, agenda: Agenda, chance: Chance) -> None:
        self._agenda = agenda
        self._chance = chance
        self._network = chance.stream("network")
        self.sessions: dict[str, Session] = {}
        self.retained: dict[str, bytes] = {}
        self._receivers: dict[str, Receiver] = {}
        self._wills: dict[str, _Will] = {}
        self._life = 0
        self._mids = 0
        self._last: dict[str, float] = {}
        """When the newest message of each gateway arrives."""
        self.up = True
        self.on_the_way = 0
        self.crashes = 0
        self.lost = 0

    # --- connections ------------------------------------------------------------------------

    def connect_gateway(self, name: str, consumer: Consumer) -> bool:
        """Take a gateway back: what it has not acknowledged is delivered again."""
        if not self.up:
            return False
        session = self.sessions.setdefault(name, Session())
        session.consumer = consumer
        for message in list(session.unacknowledged.values()):
            self._later(partial(self._hand, session, message))
        return True

    def disconnect_gateway(self, name: str) -> None:
        session = self.sessions.get(name)
        if session is not None:
            session.consumer = None

    def acknowledge(self, name: str, mid: int) -> None:
        self.sessions[name].unacknowledged.pop(mid, None)

    def connect_device(self, device: str, receiver: Receiver, will: bytes) -> bool:
        """Take a device, whose subscription brings what is retained for it."""
        if not self.up:
            return False
        self._receivers[device] = receiver
        self._wills[device] = _Will(topics.up(topics.DeviceId(device), "presence"), will)
        order = self.retained.get(topics.desired(topics.DeviceId(device)))
        if order:
            self._later(lambda: self._give(device, receiver, "desired", order))
        return True

    def disconnect_device(self, device: str, *, gracefully: bool = False) -> None:
        """End a connection; the will speaks for whoever said no goodbye."""
        self._receivers.pop(device, None)
        will = self._wills.pop(device, None)
        if will is not None and not gracefully and self.up:
            self._agenda.after(WILL_DELAY_S, lambda: self._enqueue(will.topic, will.payload))

    # --- messages ---------------------------------------------------------------------------

    def from_device(self, device: str, topic: str, payload: bytes) -> None:
        """Carry a device's message to some gateway."""
        if self._chance.happens("loss"):
            self._lose(device)
            return
        copies = 2 if self._chance.happens("duplicate") else 1
        for _ in range(copies):
            self._later(lambda: self._enqueue(topic, payload))

    def tell(self, topic: str, payload: bytes) -> None:
        """Carry a gateway's message at QoS 0: whoever is not there misses it."""
        parsed = topics.parse(topic)
        if not self._chance.happens("loss"):
            self._later(lambda: self._reach(parsed, payload))

    def _reach(self, topic: topics.Topic, payload: bytes) -> None:
        receiver = self._receivers.get(topic.device)
        if receiver is not None:
            receiver.receive(topic.channel, payload)

    def from_gateway(self, name: str, topic: str, payload: bytes, *, retain: bool) -> int:
        """Take a gateway's message, and tell it when we have it."""
        self._mids += 1
        mid = self._mids
        # One connection keeps its order, and is given up long before a lease runs out.
        arrives = max(
            self._agenda.now + self._network.random() * SLOWEST_S, self._last.get(name, 0)
        )
        self._last[name] = arrives
        self._later(
            lambda: self._publish(name, mid, topic, payload, retain=retain),
            arrives - self._agenda.now,
        )
        return mid

    def _publish(self, name: str, mid: int, topic: str, payload: bytes, *, retain: bool) -> None:
        if retain:
            self.retained[topic] = payload
        parsed = topics.parse(topic)
        receiver = self._receivers.get(parsed.device)
        if receiver is not None:
            if self._chance.happens("loss"):
                self._lose(parsed.device)
            else:
                self._later(lambda: self._give(parsed.device, receiver, parsed.channel, payload))
        consumer = self.sessions[name].consumer if name in self.sessions else None
        if consumer is not None:
            consumer.published(mid)

    def _enqueue(self, topic: str, payload: bytes) -> None:
        """Give a message to one of the group: mostly to one that is connected."""
        if not self.sessions:
            # A broker that has forgotten the gateways drops what comes before they are back. A
            # heartbeat would tell that an order is missed, so late that no story waits for it.
            self._lose(topics.parse(topic).device)
            return
        names = sorted(self.sessions)
        connected = [name for name in names if self.sessions[name].consumer is not None]
        among = connected or names
        session = self.sessions[among[int(self._network.random() * len(among))]]
        self._mids += 1
        message = Publish(topic.encode(), payload, self._mids, retain=False)
        session.unacknowledged[message.mid] = message
        self._hand(session, message)

    def _hand(self, session: Session, message: Publish) -> None:
        if session.consumer is not None and message.mid in session.unacknowledged:
            session.consumer.deliver(message)

    def _give(self, device: str, receiver: Receiver, channel: str, payload: bytes) -> None:
        if self._receivers.get(device) is receiver:
            receiver.receive(channel, payload)

    def _lose(self, device: str) -> None:
        self.lost += 1
        receiver = self._receivers.get(device)
        if receiver is None:
            return

        def cut() -> None:
            if self._receivers.get(device) is receiver:
                receiver.cut()

        self._agenda.after(self._network.random() * 60.0, cut)

    def _later(self, act: Callable[[], None], pause: float | None = None) -> None:
        """Do it after the network's delay, unless the broker has died since."""
        life = self._life
        if pause is None:
            slow = self._chance.happens("delay")
            pause = self._network.random() * (90.0 if slow else 0.2)
        self.on_the_way += 1

        def arrive() -> None:
            self.on_the_way -= 1
            if life == self._life:
                act()

        self._agenda.after(pause, arrive)

    # --- its own end ------------------------------------------------------------------------

    def crash(self, away_s: float, *, forgets: bool) -> None:
        """Die: every connection ends, what was on the way is lost; retained state may be, too."""
        self.crashes += 1
        self._life += 1
        self.up = False
        receivers, self._receivers = self._receivers, {}
        consumers = [s.consumer for s in self.sessions.values() if s.consumer is not None]
        self._wills.clear()
        if forgets:
            self.retained.clear()
            self.sessions.clear()
        for session in self.sessions.values():
            session.consumer = None
        for name in sorted(receivers):
            receivers[name].cut()
        for consumer in consumers:
            consumer.cut()
        self._agenda.after(away_s, self._rise)

    def _rise(self) -> None:
        self.up = True
