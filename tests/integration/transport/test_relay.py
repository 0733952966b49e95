"""Relays over one outbox: whatever dies and however slow, no older order follows a newer one."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from agent.protocol import topics
from agent.protocol.words import Action
from control_plane.bootstrap import Application
from control_plane.domain.device import DeviceId
from control_plane.gateway import relay as module
from control_plane.gateway.relay import BATCHES, LEASE_S, POLL_S, Relay
from control_plane.services import desired
from control_plane.services.desired import Wanted
from control_plane.services.scope import Scope
from control_plane.store import outbox
from tests.integration.transport.fleets import enrol_many
from tests.integration.transport.gateways import GatewayProcess, until, waiting
from tests.integration.transport.orders import open_order
from tests.support import services
from tests.support.mqtt import client

DEVICES = 6


@dataclass
class Clock:
    """A monotonic clock for the relays, and how far the server's time is ahead by it."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


class Late(Application):
    """An application whose time is the clock's."""

    def __init__(self, app: Application, clock: Clock) -> None:
        super().__init__(app.settings)
        self.database, self.keyring = app.database, app.keyring
        self._clock = clock

    @contextmanager
    def scope(self, actor: str) -> Iterator[Scope]:
        with super().scope(actor) as scope:
            yield replace(scope, now=scope.now + timedelta(seconds=self._clock.now))


@dataclass
class Broker:
    """What a broker retains; checks that it never gets an older order after a newer one."""

    open: Callable[[bytes], int]
    generation: Counter[str] = field(default_factory=Counter)
    messages: int = 0

    def take(self, topic: str, payload: bytes) -> None:
        said = self.open(payload)
        assert said >= self.generation[topic], f"{topic}: {said} after {self.generation[topic]}"
        self.generation[topic] = said
        self.messages += 1


class Line:
    """One relay and its connection; what it publishes is acknowledged when `answer` is called."""

    def __init__(self, app: Application, broker: Broker, owner: str) -> None:
        self.relay = Relay(app, owner)
        self._broker = broker
        self._mid = 0
        self._unanswered: list[int] = []

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        assert retain
        self._broker.take(topic, payload)
        self._mid += 1
        self._unanswered.append(self._mid)
        return self._mid

    def step(self) -> None:
        link: Any = self
        self.relay.step(link)

    def answer(self) -> None:
        waiting, self._unanswered = self._unanswered, []
        for mid in waiting:
            self.relay.confirmed(mid)


@dataclass
class World:
    """Two relays, a broker and devices that are given orders."""

    app: Application
    clock: Clock
    devices: list[DeviceId]
    broker: Broker
    lines: dict[str, Line]

    @classmethod
    def of(cls, app: Application, clock: Clock, devices: list[DeviceId]) -> "World":
        late = Late(app, clock)
        broker = Broker(lambda payload: open_order(app, payload).generation)
        lines = {owner: Line(late, broker, owner) for owner in ("a", "b")}
        return cls(late, clock, devices, broker, lines)

    def order(self, *numbers: int) -> None:
        with self.app.scope("engine") as scope:
            desired.set_desired(
                scope, [Wanted(self.devices[number], Action.HOLD) for number in numbers]
            )

    def kill(self, owner: str) -> None:
        """What it held stays held; another of the name comes and gives it back when it connects."""
        self.lines[owner] = Line(self.app, self.broker, owner)

    def drain(self, *owners: str) -> None:
        """Let these relays finish; nobody else gives anything back, but the time passes."""
        for _ in range(100):
            if waiting(self.app.database) == 0:
                break
            self.clock.now += LEASE_S / 10
            for owner in owners:
                self.lines[owner].step()
                self.lines[owner].answer()
        assert waiting(self.app.database) == 0

    def check(self) -> None:
        """Compare what the broker retains with what the database wants."""
        with self.app.reading("test") as scope:
            rows = scope.tx.execute(text("SELECT device_id, generation FROM desired"))
            wanted = {topics.desired(topics.DeviceId(row[0])): row[1] for row in rows}
        assert self.broker.generation == Counter(wanted)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)  # the relay's only clock
    return made


@pytest.fixture
def world(app: Application, clock: Clock) -> World:
    return World.of(app, clock, enrol_many(app, DEVICES))


def test_everything_is_published_once_and_forgotten(world: World) -> None:
    world.order(*range(DEVICES))
    world.drain("a")
    world.check()
    assert world.broker.messages == DEVICES
    assert world.lines["a"].relay.published == DEVICES


def test_a_dead_relays_orders_are_published_by_the_other_when_its_time_is_over(
    world: World,
) -> None:
    world.order(*range(DEVICES))
    world.lines["a"].step()  # published, and dead before anybody says so
    world.order(0, 1)
    world.lines["b"].step()
    world.lines["b"].answer()
    assert waiting(world.app.database) > 0
    world.drain("b")
    world.check()


def test_a_relay_that_comes_back_goes_on_at_once(world: World) -> None:
    world.order(*range(DEVICES))
    world.lines["a"].step()
    world.kill("a")
    world.lines["a"].relay.release()
    world.lines["a"].step()
    world.lines["a"].answer()
    world.clock.now += POLL_S
    world.lines["a"].step()
    assert waiting(world.app.database) == 0
    world.check()


def test_a_relay_that_was_held_up_publishes_nothing_that_is_old_by_now(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.order(*range(DEVICES))
    real = outbox.take

    def slow(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(outbox, "take", real)
        batch = real(*args, **more)
        world.clock.now += LEASE_S
        return batch

    monkeypatch.setattr(outbox, "take", slow)
    world.lines["a"].step()
    assert world.broker.messages == 0
    world.order(0)
    world.drain("b")
    world.drain("a")
    world.check()


def test_a_slow_broker_keeps_the_topic_with_its_relay(world: World) -> None:
    world.order(0)
    world.lines["a"].step()
    world.order(0)
    for _ in range(20):  # two leases long
        world.clock.now += LEASE_S / 10
        for line in world.lines.values():
            line.step()
    assert world.broker.messages == 1
    world.lines["a"].answer()
    world.drain("b", "a")
    world.check()


def test_relays_share_what_there_is(app: Application, clock: Clock) -> None:
    world = World.of(app, clock, enrol_many(app, 200))
    a, b = world.lines.values()
    world.order(*range(200))
    a.step()
    b.step()  # from now on each knows of the other
    for _ in range(4):
        clock.now += 1.5
        world.order(*range(200))
        for line in (a, b):
            for _ in range(BATCHES):
                line.step()
                line.answer()
    world.drain("a", "b")
    world.check()
    assert min(a.relay.published, b.relay.published) >= 200


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("order"), st.integers(0, DEVICES - 1)),
        st.tuples(st.sampled_from(["step", "answer", "kill", "release"]), st.sampled_from("ab")),
        st.tuples(st.just("wait"), st.sampled_from([POLL_S, LEASE_S / 2, LEASE_S + 1])),
    ),
    max_size=40,
)


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(steps=_STEPS)
def test_on_any_schedule_the_newest_order_is_the_last(
    sqlite_app: Application, clock: Clock, steps: list[tuple[str, Any]]
) -> None:
    world = _fresh(sqlite_app, clock)
    for what, which in steps:
        match what:
            case "order":
                world.order(which)
            case "wait":
                clock.now += which
            case "kill":
                world.kill(which)
            case "step":
                world.lines[which].step()
            case "answer":
                world.lines[which].answer()
            case _:
                world.kill(which)
                world.lines[which].relay.release()
    world.drain("a", "b")
    world.check()


def _fresh(app: Application, clock: Clock) -> World:
    with app.scope("test") as scope:
        for table in ("outbox", "desired", "lease", "device_history", "device"):
            scope.tx.execute(text(f"DELETE FROM {table}"))  # noqa: S608 - our own words
        scope.tx.execute(text("UPDATE outbox_shard SET owner = '', batch = ''"))
    return World.of(app, clock, enrol_many(app, DEVICES))


def test_gateways_killed_while_they_publish_lose_no_order(app: Application, tmp_path: Path) -> None:
    devices = enrol_many(app, 300)
    broker = services.mosquitto()
    try:
        broker.start()
        names = ("flotilla-gateway-1", "flotilla-gateway-2")
        changed = {"mqtt_port": broker.port, "share_group": "a-secret-name"}
        made = [app.settings.model_copy(update={**changed, "gateway_name": name}) for name in names]
        with (
            GatewayProcess(made[0], tmp_path / "1.log") as one,
            GatewayProcess(made[1], tmp_path / "2.log") as two,
            client("probe", broker.port) as probe,
        ):
            probe.subscribe(f"{topics.PREFIX}/+/down/desired")
            one.start()
            two.start()
            for turn in range(2):
                with app.scope("engine") as scope:
                    desired.set_desired(scope, [Wanted(one, Action.HOLD) for one in devices])
                probe.next()  # they are at it
                killed = (one, two)[turn % 2]
                killed.kill()
                killed.start()
            until(lambda: waiting(app.database) == 0, "the outbox empty")
            with client("later", broker.port) as later:
                later.subscribe(f"{topics.PREFIX}/+/down/desired")
                kept = [open_order(app, later.next().payload) for _ in devices]
    finally:
        broker.discard()
    assert {(order.device, order.generation) for order in kept} == {(d, 2) for d in devices}
