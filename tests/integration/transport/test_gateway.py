"""The gateway on a real broker: nothing lost, nothing twice, whatever dies."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import text

from agent.protocol import messages, topics
from agent.protocol.messages import Ack, Event, Heartbeat, Hello, Order, Presence
from agent.protocol.words import Action, ExecutionState
from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.domain.device import DeviceId
from control_plane.services import desired, inventory
from control_plane.services.desired import Wanted
from control_plane.signing.keyring import Keyring
from control_plane.store import migrate
from tests.integration.transport.fleets import bundle, enrol, enrol_many, offer
from tests.integration.transport.gateways import (
    GatewayProcess,
    logged,
    on_broker,
    running,
    seen,
    until,
    waiting,
)
from tests.integration.transport.orders import open_order
from tests.support import services
from tests.support.brokers import MutualBroker
from tests.support.mqtt import Client, client


def _topic(device: str, channel: str) -> str:
    return topics.up(topics.DeviceId(device), channel)


def _say(device: Client, name: str, channel: str, body: msgspec.Struct) -> None:
    device.publish(_topic(name, channel), messages.encode(body))


def _event(execution: str, seq: int, state: ExecutionState = ExecutionState.STAGED) -> Event:
    return Event(boot=1, seq=seq, generation=1, execution=execution, state=state)


def _online(app: Application, device: str) -> bool:
    with app.reading("test") as scope:
        return inventory.get_device(scope, device).online


@pytest.fixture
def broker() -> Iterator[services.Service]:
    """A broker of this test's own: to kill, and without another's retained messages."""
    server = services.mosquitto()
    try:
        yield server.start()
    finally:
        server.discard()


def test_a_report_is_acknowledged_to_the_device_once_it_is_stored(
    app: Application, broker: services.Service
) -> None:
    enrol(app, "edge-1")
    execution = offer(app, [DeviceId("edge-1")], bundle(app))[DeviceId("edge-1")]
    gateway = on_broker(app, broker.port)
    with running(gateway), client("edge-1", broker.port) as device:
        device.subscribe(topics.down(topics.DeviceId("edge-1"), "ack"))
        _say(device, "edge-1", "hello", Hello(boot=1, generation=1, agent="0.1.0"))
        until(lambda: _online(app, "edge-1"), "online")
        for _ in range(2):
            _say(device, "edge-1", "events", _event(execution, 7))
            ack = messages.decode(device.next().payload, Ack)
            assert ack.reports == [(1, 7)]
            assert seen(app.database) == 1


def test_an_order_reaches_the_device_signed_and_stays_for_one_that_comes_later(
    app: Application, broker: services.Service
) -> None:
    enrol(app, "edge-1")
    stored = bundle(app)
    gateway = on_broker(app, broker.port)
    wanted = Wanted(DeviceId("edge-1"), Action.RUN, stored.digest, rollout="r", execution="e")
    with running(gateway), client("edge-1", broker.port) as device:
        device.subscribe(topics.all_down(topics.DeviceId("edge-1")))
        with app.scope("engine") as scope:
            desired.set_desired(scope, [wanted])
        got = device.next()
        assert got.topic == topics.desired(topics.DeviceId("edge-1"))
        order = open_order(app, got.payload)
        assert (order.generation, order.action, order.execution) == (1, Action.RUN, "e")
        until(lambda: waiting(app.database) == 0, "the outbox empty")
        with client("edge-1-later", broker.port) as later:
            later.subscribe(topics.all_down(topics.DeviceId("edge-1")))
            assert later.next() == got._replace(retain=True)


def test_a_device_that_says_an_old_generation_is_sent_its_order_again(
    app: Application, broker: services.Service
) -> None:
    enrol(app, "edge-1")
    gateway = on_broker(app, broker.port)
    with app.scope("engine") as scope:
        desired.set_desired(scope, [Wanted(DeviceId("edge-1"), Action.HOLD)])
    with running(gateway), client("edge-1", broker.port) as device:
        until(lambda: waiting(app.database) == 0, "the outbox empty")
        # What a broker that lost everything looks like.
        device.publish(topics.desired(topics.DeviceId("edge-1")), b"", retain=True)
        device.subscribe(topics.all_down(topics.DeviceId("edge-1")))
        _say(device, "edge-1", "hello", Hello(boot=1, generation=0, agent="0.1.0"))
        order: Order = open_order(app, device.next().payload)
        assert order.generation == 1


def test_a_gateway_killed_in_mid_batch_loses_nothing_and_counts_nothing_twice(
    app: Application, broker: services.Service, tmp_path: Path
) -> None:
    devices = enrol_many(app, 20)
    executions = offer(app, devices, bundle(app))
    settings = app.settings.model_copy(update={"mqtt_port": broker.port})
    each, kills = 20, 3
    total = each * len(devices)
    with (
        GatewayProcess(settings, tmp_path / "gateway.log") as gateway,
        client("probe", broker.port) as probe,
    ):
        gateway.start()
        here = messages.encode(Presence(online=True, connection=1))
        probe.publish(_topic(devices[0], "presence"), here, retain=True)
        until(lambda: _online(app, devices[0]), "the gateway serving")
        gateway.kill()
        for seq in range(1, each + 1):
            for device in devices:
                _say(probe, device, "events", _event(executions[device], seq))
        killed_in_the_middle = 0
        for _ in range(kills):
            before = seen(app.database)
            gateway.start()
            until(lambda: seen(app.database) != before, "more reports counted")  # noqa: B023 - used in this turn only
            gateway.kill()
            if seen(app.database) == total:  # it was quicker than the kill
                break
            killed_in_the_middle += 1
        gateway.start()
        until(lambda: seen(app.database) == total, f"all {total} reports counted")
    assert killed_in_the_middle > 0
    with app.database.reading() as tx:
        counts = tx.execute(
            text("SELECT state, n FROM tally WHERE n > 0 ORDER BY state")
        ).fetchall()
    assert [tuple(row) for row in counts] == [("STAGED", len(devices))]


def test_after_a_broker_crash_reports_and_orders_flow_again(
    app: Application, broker: services.Service
) -> None:
    enrol(app, "edge-1")
    gateway = on_broker(app, broker.port)
    with running(gateway):
        with client("edge-1", broker.port) as device:
            _say(device, "edge-1", "presence", Presence(online=True, connection=1))
            until(lambda: _online(app, "edge-1"), "online")
        broker.kill()
        with app.scope("engine") as scope:
            desired.set_desired(scope, [Wanted(DeviceId("edge-1"), Action.HOLD)])
        broker.start()
        with client("edge-1", broker.port) as device:
            device.subscribe(topics.all_down(topics.DeviceId("edge-1")))
            assert open_order(app, device.next().payload).generation == 1
            _say(device, "edge-1", "presence", Presence(online=False, connection=1))
            until(lambda: not _online(app, "edge-1"), "offline")


def test_a_broker_that_is_down_at_start_is_named_and_waited_for(sqlite_app: Application) -> None:
    server = services.mosquitto()
    gateway = on_broker(sqlite_app, server.port)
    enrol(sqlite_app, "edge-1")
    try:
        with running(gateway, connected=False) as lines:
            until(lambda: len(lines) >= 2, "two tries")
            server.start()
            until(lambda: lines[-1]["event"] == "gateway.connected", "connected")
            with client("edge-1", server.port) as device:
                _say(device, "edge-1", "presence", Presence(online=True, connection=1))
                until(lambda: _online(sqlite_app, "edge-1"), "online")
    finally:
        server.discard()
    assert lines[0]["event"] == "gateway.broker_unreachable"
    assert (lines[0]["host"], lines[0]["port"]) == ("127.0.0.1", server.port)
    assert "refused" in lines[0]["error"]


def test_a_gateway_that_waits_for_its_broker_stops_when_told(sqlite_app: Application) -> None:
    gateway = on_broker(sqlite_app, services.free_port())
    with running(gateway, connected=False) as lines:
        until(lambda: len(lines) >= 3, "some tries")
    assert lines[-1]["event"] == "gateway.stopped"


def test_a_database_that_goes_away_costs_time_and_no_report(
    tmp_path: Path, broker: services.Service
) -> None:
    server = services.postgresql()
    try:
        server.start()
        app = _application(tmp_path, server.url())
        enrol(app, "edge-1")
        execution = offer(app, [DeviceId("edge-1")], bundle(app))[DeviceId("edge-1")]
        gateway = on_broker(app, broker.port, gateway_name="flotilla-gateway-9")
        with running(gateway) as lines, client("edge-1", broker.port) as device:
            device.subscribe(topics.down(topics.DeviceId("edge-1"), "ack"))
            _say(device, "edge-1", "presence", Presence(online=True, connection=1))
            until(lambda: _online(app, "edge-1"), "online")
            app.close()
            server.stop()
            for seq in range(1, 6):
                _say(device, "edge-1", "events", _event(execution, seq))
            until(
                lambda: bool(logged(lines, "gateway.database_away")),
                "the outage noticed",
            )
            assert device.received.empty(), "acknowledged what is not stored"
            server.start()
            acknowledged: set[tuple[int, int]] = set()
            while len(acknowledged) < 5:
                acknowledged |= set(messages.decode(device.next().payload, Ack).reports)
        assert seen(app.database) == 5
        app.close()
    finally:
        server.discard()


def _application(folder: Path, url: str) -> Application:
    migrate.upgrade(url)
    return Application(Settings(data=folder / "data", database_url=url))


def test_a_poison_message_is_dropped_and_counted_and_the_rest_is_stored(
    sqlite_app: Application, broker: services.Service
) -> None:
    names = [str(name) for name in enrol_many(sqlite_app, 8)]
    with sqlite_app.database.transaction() as tx:
        # A row that the database refuses, however often it is tried.
        tx.execute(
            text(
                "CREATE TRIGGER poison BEFORE UPDATE ON device WHEN NEW.id = 'edge-003'"
                " BEGIN SELECT RAISE(ABORT, 'poison'); END"
            )
        )
    gateway = on_broker(sqlite_app, broker.port)
    with running(gateway) as lines, client("probe", broker.port) as probe:
        for name in names:
            _say(probe, name, "heartbeat", Heartbeat(boot=1, generation=0))
        until(
            lambda: all(_online(sqlite_app, name) for name in names if name != "edge-003"),
            "everybody else online",
        )
        until(lambda: bool(logged(lines, "inbox.poison")), "poison counted")
    poison = logged(lines, "inbox.poison")
    assert [line["topic"] for line in poison] == [_topic("edge-003", "heartbeat")]
    assert not _online(sqlite_app, "edge-003")


def test_unreadable_and_unknown_messages_are_counted_and_stop_nobody(
    sqlite_app: Application, broker: services.Service
) -> None:
    enrol(sqlite_app, "edge-1")
    gateway = on_broker(sqlite_app, broker.port)
    with running(gateway) as lines, client("probe", broker.port) as probe:
        probe.publish(_topic("edge-1", "hello"), b"{")
        probe.publish(_topic("edge-1", "gossip"), b"{}")
        probe.publish(
            _topic("nobody", "heartbeat"), messages.encode(Heartbeat(boot=1, generation=0))
        )
        _say(probe, "edge-1", "presence", Presence(online=True, connection=1))
        until(lambda: _online(sqlite_app, "edge-1"), "online")
    counted: dict[str, int] = {}
    for line in lines:
        for code in ("protocol_malformed", "protocol_topic", "device_unknown"):
            counted[code] = counted.get(code, 0) + line.get(code, 0)
    assert counted == {"protocol_malformed": 1, "protocol_topic": 1, "device_unknown": 1}


def test_two_gateways_share_the_reports_and_each_counts_once(
    app: Application, broker: services.Service
) -> None:
    devices = enrol_many(app, 10)
    executions = offer(app, devices, bundle(app))
    shared = {"share_group": "a-secret-name"}
    one = on_broker(app, broker.port, gateway_name="flotilla-gateway-1", **shared)
    two = on_broker(app, broker.port, gateway_name="flotilla-gateway-2", **shared)
    with running(one, two) as lines:
        with client("probe", broker.port) as probe:
            for seq in range(1, 11):
                for device in devices:
                    _say(probe, device, "events", _event(executions[device], seq))
        until(lambda: seen(app.database) == 100, "all reports counted")
    stopped = [line["received"] for line in logged(lines, "gateway.stopped")]
    assert sum(stopped) == 100
    assert min(stopped) > 0


def test_over_mutual_tls_a_device_is_heard_and_reached(
    sqlite_app: Application, mutual_broker: Callable[[Keyring], MutualBroker]
) -> None:
    broker = mutual_broker(sqlite_app.keyring)
    gateway = on_broker(sqlite_app, broker.port, mqtt_tls=True)
    enrol(sqlite_app, "edge-1")
    files = broker.device("edge-1")
    with running(gateway), client("edge-1", broker.port, files) as device:
        device.subscribe(topics.all_down(topics.DeviceId("edge-1")))
        with sqlite_app.scope("engine") as scope:
            desired.set_desired(scope, [Wanted(DeviceId("edge-1"), Action.HOLD)])
        assert open_order(sqlite_app, device.next().payload).device == "edge-1"
        _say(device, "edge-1", "presence", Presence(online=True, connection=1))
        until(lambda: _online(sqlite_app, "edge-1"), "online")


def test_a_gateway_that_the_broker_does_not_know_says_so(
    sqlite_app: Application, mutual_broker: Callable[[Keyring], MutualBroker], tmp_path: Path
) -> None:
    broker = mutual_broker(Keyring.open(tmp_path / "other-fleet"))
    gateway = on_broker(sqlite_app, broker.port, mqtt_tls=True)
    with running(gateway, connected=False) as lines:
        until(lambda: len(lines) >= 1, "a try")
    assert lines[0]["event"] == "gateway.broker_unreachable"
    assert "certificate" in lines[0]["error"].lower()


def test_stopping_leaves_no_lease_behind(sqlite_app: Application, broker: services.Service) -> None:
    enrol(sqlite_app, "edge-1")
    gateway = on_broker(sqlite_app, broker.port)
    with running(gateway), sqlite_app.scope("engine") as scope:
        desired.set_desired(scope, [Wanted(DeviceId("edge-1"), Action.HOLD)])
    with sqlite_app.database.reading() as tx:
        held = tx.execute(text("SELECT count(*) FROM outbox_shard WHERE owner <> ''")).scalar_one()
    assert held == 0
