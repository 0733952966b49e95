"""The shell of a simulated fleet: sockets, timers and the clock, all in one thread.

A heap holds what is due, a selector what arrives; the devices themselves are values
(device.py). A device's timer in the heap may be early: it is asked again and sleeps on.
"""

import hashlib
import heapq
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from agent.protocol import backoff, envelope, messages
from agent.protocol.errors import ProtocolError
from agent.protocol.messages import Ack, BackOff, Command, Order
from agent.protocol.words import Reason
from control_plane.local.fleet_simulator import device as devices
from control_plane.local.fleet_simulator.lines import Caller, Ears, Lines
from control_plane.local.fleet_simulator.states import (
    Acked,
    Came,
    Device,
    Fetch,
    Fetched,
    Happening,
    Moment,
    Ordered,
    Say,
    Told,
    Traits,
    Vanish,
    Went,
    Woke,
)
from control_plane.local.fleet_simulator.tallies import Tallies

ANSWER_S = 30.0
"""A broker that took the connection and does not answer; 10,000 others may be before us."""
LONGEST_SLEEP_S = 0.5
BITE = 500
"""Timers between two looks at the sockets."""
BACK_OFF = "back-off"
FLUSH_S = 0.2


class Vouching(Protocol):
    """Says whether a signature over an order is by a key that devices trust."""

    def __call__(self, payload: bytes, signatures: dict[str, bytes]) -> bool: ...


class Fetching(Protocol):
    """Downloads an order's bundle as a device, in another thread; returns why not."""

    def __call__(self, caller: Caller, order: Order) -> Reason: ...


class Part(NamedTuple):
    """A device and its character."""

    traits: Traits
    caller: Caller
    wanders: bool


class _Place:
    """What the shell knows of one device."""

    __slots__ = (
        "away_until",
        "connected_at",
        "connection",
        "device",
        "dialing",
        "failures",
        "heard",
        "planned",
        "told_until",
    )

    def __init__(self, device: Device) -> None:
        self.device = device
        self.connection = device.boot << 20
        self.connected_at = 0.0
        self.dialing = False
        self.failures = 0
        self.heard = 0
        self.away_until = 0.0
        self.planned = devices.FOREVER
        self.told_until = 0.0


class Simulation:
    """A running fleet.

    Args:
        parts: its devices.
        states: their states at the start, in the same order.
        lines: makes their connections, given who is told.
        vouch: checks signatures of orders.
        fetch: downloads, where the profile wants real ones.
        tallies: what is counted.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        states: Sequence[Device],
        *,
        lines: Callable[[Ears], Lines],
        vouch: Vouching,
        fetch: Fetching,
        tallies: Tallies,
    ) -> None:
        self.parts = parts
        self.tallies = tallies
        self.connected = 0
        self.in_flight = 0
        self._places = [_Place(state) for state in states]
        self._lines = lines(Ears(self._up, self._down, self._arrived))
        self._vouch = vouch
        self._fetch = fetch
        self._fetchers = ThreadPoolExecutor(16, thread_name_prefix="fetch")
        self._fetched: SimpleQueue[tuple[int, Fetched]] = SimpleQueue()
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._pushed = 0
        self._stopping = False

    @property
    def states(self) -> list[Device]:
        """Return every device as it is now."""
        return [place.device for place in self._places]

    def stop(self) -> None:
        """End `run` soon; any thread or signal handler may call this."""
        self._stopping = True
        self._lines.ring()

    def run(self) -> None:
        """Live until told to stop; then say goodbye."""
        self._begin()
        try:
            while not self._stopping:
                self._turn()
        finally:
            self._end()

    # --- the loop ---------------------------------------------------------------------------

    def _begin(self) -> None:
        now = time.monotonic()
        self._flush()
        for number, part in enumerate(self.parts):
            spec = part.traits.spec
            # Evenly, since a person who starts a fleet is not an outage.
            self._at(now + number / spec.connects_per_second, self._dial, number)
            if part.wanders:
                phase = part.traits.draws.uniform("phase") * spec.offline.up
                self._at(now + phase, self._walk_off, number, 0)

    def _turn(self) -> None:
        for _ in range(BITE):
            if not self._heap or self._heap[0][0] > time.monotonic():
                break
            _, _, act, what = heapq.heappop(self._heap)
            act(*what)
        while not self._fetched.empty():
            number, event = self._fetched.get()
            self._take(number, event)
        pause = self._heap[0][0] - time.monotonic() if self._heap else LONGEST_SLEEP_S
        self._lines.poll(max(0.0, min(pause, LONGEST_SLEEP_S)))

    def _end(self) -> None:
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        for number in range(len(self.parts)):
            self._lines.goodbye(number)
        self._lines.close()
        self.tallies.flush()

    def _flush(self) -> None:
        """Let who reads the record see what happened."""
        self.tallies.flush()
        self._at(time.monotonic() + FLUSH_S, self._flush)

    def _at(self, at: float, act: Callable[..., None], *what: object) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (at, self._pushed, act, what))

    # --- the device -------------------------------------------------------------------------

    def _take(self, number: int, event: Happening) -> None:
        """Let a device live through an event, and do what it wants."""
        place, traits = self._places[number], self.parts[number].traits
        before = place.device
        now = _now()
        place.device, effects = devices.take(traits, before, event, now)
        self.in_flight += devices.in_flight(place.device) - devices.in_flight(before)
        for effect in effects:
            match effect:
                case Say():
                    self._say(number, effect, now)
                case Fetch():
                    self._fetchers.submit(self._fetch_for, number, effect.order)
                case Vanish():
                    self._vanish(number, effect)
        self._plan(number)

    def _plan(self, number: int) -> None:
        place = self._places[number]
        due = devices.wake_at(place.device)
        if due < place.planned:
            place.planned = due
            self._at(due, self._wake, number, due)

    def _wake(self, number: int, planned: float) -> None:
        place = self._places[number]
        if place.planned == planned:
            place.planned = devices.FOREVER
            if devices.wake_at(place.device) <= time.monotonic():
                self._take(number, Woke())
            else:
                self._plan(number)

    def _say(self, number: int, said: Say, now: Moment) -> None:
        if said.report is not None:
            self.tallies.reported(now.wall, self.parts[number].traits.name, said.report)
        if said.at >= 0:
            connection = self._places[number].connection
            self._at(said.at, self._publish, number, connection, said)

    def _publish(self, number: int, connection: int, said: Say) -> None:
        same = self._places[number].connection == connection
        if same and self._lines.publish(number, said.channel, said.message, said.qos):
            self.tallies.sent += 1
        else:
            self.tallies.dropped += 1

    # --- what arrives -----------------------------------------------------------------------

    def _arrived(self, number: int, channel: str, payload: bytes) -> None:
        self.tallies.received += 1
        traits, place = self.parts[number].traits, self._places[number]
        link = traits.spec.link.latency
        if link.median <= 0:
            self._hear(number, channel, payload)
            return
        place.heard += 1
        late = traits.draws.lognormal(link.median, link.spread, "hears", place.heard)
        self._at(time.monotonic() + late, self._hear, number, channel, payload)

    def _hear(self, number: int, channel: str, payload: bytes) -> None:
        if not payload or self._places[number].device.asleep:
            return
        try:
            event = self._read(number, channel, payload)
        except ProtocolError:
            event = None
        if event is None:
            self.tallies.unread += 1
        else:
            self._take(number, event)

    def _read(self, number: int, channel: str, payload: bytes) -> Happening | None:
        match channel:
            case "desired":
                return self._read_order(payload)
            case "ack":
                return self._read_ack(number, payload)
            case "cmd":
                return self._read_command(number, payload)
            case _:
                return None

    def _read_order(self, payload: bytes) -> Ordered | None:
        signed, signatures = envelope.open_unverified(payload, envelope.ORDER_TYPE)
        if not self._vouch(signed, signatures):
            return None
        order = messages.decode(signed, Order)
        self.tallies.ordered(_wall(), order)
        return Ordered(order, hashlib.sha256(payload).hexdigest())

    def _read_ack(self, number: int, payload: bytes) -> Acked:
        ack = messages.decode(payload, Ack)
        device = self._places[number].device
        named = {seq for boot, seq in ack.reports if boot == device.boot}
        name = self.parts[number].traits.name
        for kept in device.kept:
            if kept.seq in named:
                self.tallies.note(_wall(), "acked", name, seq=kept.seq, says=kept.says)
        return Acked(ack.reports)

    def _read_command(self, number: int, payload: bytes) -> Told | None:
        command = messages.decode(payload, Command)
        if command.expires <= _wall():
            return Told("")
        if command.name != BACK_OFF:
            return Told(command.name)
        asked = messages.decode(payload, BackOff).seconds
        self.tallies.told_to_wait += 1
        self._places[number].told_until = time.monotonic() + asked
        return Told(BACK_OFF, asked)

    # --- the line ---------------------------------------------------------------------------

    def _dial(self, number: int) -> None:
        place = self._places[number]
        if place.dialing or place.device.connected or place.away_until > time.monotonic():
            return
        place.dialing = True
        place.connection += 1
        self._lines.dial(number, self.parts[number].caller, place.connection)
        self._at(time.monotonic() + ANSWER_S, self._lines.give_up, number, place.connection)

    def _up(self, number: int) -> None:
        place, part = self._places[number], self.parts[number]
        place.dialing = False
        place.connected_at = time.monotonic()
        self.connected += 1
        self.tallies.connects += 1
        self.tallies.note(_wall(), "up", part.traits.name)
        self._look_after(number, place.connection)
        self._take(number, Came())

    def _down(self, number: int) -> None:
        place, part = self._places[number], self.parts[number]
        if place.device.connected:
            self._went(number)
            if time.monotonic() - place.connected_at >= backoff.STEADY_S:
                place.failures = 0
        else:
            self.tallies.failed_dials += 1
        place.dialing = False
        if place.away_until <= time.monotonic():
            self._at(time.monotonic() + self._pause(number, part.traits), self._dial, number)

    def _went(self, number: int) -> None:
        self.connected -= 1
        self.tallies.losses += 1
        self.tallies.note(_wall(), "lost", self.parts[number].traits.name)
        self._take(number, Went())

    def _pause(self, number: int, traits: Traits) -> float:
        """Return how long to wait before the next try: with full jitter, as the agent."""
        place, reconnect = self._places[number], traits.spec.reconnect
        most = backoff.longest_pause_s(
            place.failures,
            base_s=reconnect.base,
            cap_s=reconnect.cap,
            told_s=place.told_until - time.monotonic(),
        )
        place.failures += 1
        return most * traits.draws.uniform("pause", place.connection)

    def _look_after(self, number: int, connection: int) -> None:
        """Give paho its turn for the keepalive, three times in its length."""
        if self._places[number].connection == connection:
            self._lines.look_after(number)
            pause = self.parts[number].traits.spec.keepalive / 3
            self._at(time.monotonic() + pause, self._look_after, number, connection)

    # --- coming and going -------------------------------------------------------------------

    def _vanish(self, number: int, effect: Vanish) -> None:
        gone = effect.seconds or devices.FOREVER
        self._leave(number, gone)

    def _walk_off(self, number: int, times: int) -> None:
        """A device of those that come and go leaves, and plans its way back and its next walk."""
        traits = self.parts[number].traits
        offline = traits.spec.offline
        away = offline.down * traits.draws.lognormal(1.0, 2.0, "away", times)
        stays = offline.up * traits.draws.lognormal(1.0, 2.0, "stays", times)
        self._leave(number, away)
        self._at(time.monotonic() + away + stays, self._walk_off, number, times + 1)

    def _leave(self, number: int, seconds: float) -> None:
        place = self._places[number]
        back = time.monotonic() + seconds
        if back <= place.away_until:
            return
        place.away_until = back
        place.dialing = False
        self._lines.cut(number)
        if place.device.connected:
            self._went(number)
        if seconds != devices.FOREVER:
            self._at(back, self._dial, number)

    # --- real downloads ---------------------------------------------------------------------

    def _fetch_for(self, number: int, order: Order) -> None:
        reason = self._fetch(self.parts[number].caller, order)
        self._fetched.put((number, Fetched(order.generation, reason)))
        self._lines.ring()


def _wall() -> float:
    return time.time()  # noqa: TID251 - the shell of the simulated devices has their clock


def _now() -> Moment:
    return Moment(_wall(), time.monotonic())
