"""Both embedded brokers, as `flotilla up` starts them, with real clients."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.protocol import topics
from agent.protocol.topics import DeviceId
from control_plane.config import Settings
from control_plane.domain.errors import InvalidError
from control_plane.local import broker
from control_plane.local.children import Supervisor
from control_plane.local.mosquitto import GATEWAY
from control_plane.signing.keyring import Keyring
from tests.support import mqtt, services
from tests.support.brokers import ClientFiles, device_files

A, B = DeviceId("edge-a"), DeviceId("edge-b")

pytestmark = [pytest.mark.integration, pytest.mark.isolation]


class Fleet:
    """A running broker and everybody's credentials."""

    def __init__(self, keyring: Keyring, port: int) -> None:
        self.port = port
        now = datetime.now(UTC)  # noqa: TID251 - certificates are checked against the real clock
        files = keyring.issue_service(GATEWAY, [], now)
        self.gateway = ClientFiles(keyring.ca_path, files.certificate, files.key)
        self.a = device_files(keyring, A)
        self.b = device_files(keyring, B)


@pytest.fixture(params=["mosquitto", "amqtt"])
def fleet(request: pytest.FixtureRequest, keyring: Keyring, tmp_path: Path) -> Iterator[Fleet]:
    settings = Settings(data=tmp_path / "data", broker=request.param)
    now = datetime.now(UTC)  # noqa: TID251 - certificates are checked against the real clock
    local = broker.prepare(settings, keyring, services.free_port(), now)
    assert local.kind == request.param
    supervisor = Supervisor(tmp_path / "logs")
    try:
        supervisor.start(local.child)
        yield Fleet(keyring, local.port)
    finally:
        supervisor.stop()


def test_a_desired_state_waits_for_its_device(fleet: Fleet) -> None:
    with mqtt.client(GATEWAY, fleet.port, fleet.gateway) as gateway:
        gateway.publish(topics.desired(A), b"order", retain=True)

    with mqtt.client(A, fleet.port, fleet.a) as device:
        assert device.subscribe(topics.all_down(A))
        assert device.next() == mqtt.Got(topics.desired(A), b"order", retain=True)


def test_a_report_reaches_the_gateway(fleet: Fleet) -> None:
    with (
        mqtt.client(GATEWAY, fleet.port, fleet.gateway) as gateway,
        mqtt.client(A, fleet.port, fleet.a) as device,
    ):
        assert gateway.subscribe(topics.all_up())
        device.publish(topics.up(A, "events"), b"report")

        assert gateway.next().payload == b"report"


def test_the_will_of_a_vanished_device_reaches_the_gateway(fleet: Fleet) -> None:
    with mqtt.client(GATEWAY, fleet.port, fleet.gateway) as gateway:
        assert gateway.subscribe(topics.all_up())
        device = mqtt.Client(A, fleet.port, fleet.a, will=topics.up(A, "presence"))
        device.open()
        assert device.connected.wait(mqtt.WAIT_S)
        device.drop()

        assert gateway.next()[:2] == (topics.up(A, "presence"), b"will")


@pytest.mark.parametrize(
    "topic",
    [
        pytest.param(topics.up(B, "events"), id="as another device"),
        pytest.param(topics.desired(B), id="an order for another device"),
        pytest.param(topics.desired(A), id="an order for itself"),
    ],
)
def test_a_device_cannot_publish_outside_its_own_reports(fleet: Fleet, topic: str) -> None:
    with (
        mqtt.client(GATEWAY, fleet.port, fleet.gateway) as gateway,
        mqtt.client(A, fleet.port, fleet.a) as device,
    ):
        assert gateway.subscribe(f"{topics.PREFIX}/#")
        device.publish(topic, b"forged")
        device.publish(topics.up(A, "events"), b"marker")

        assert gateway.next().payload == b"marker"
        assert gateway.received.empty()


@pytest.mark.parametrize(
    "wanted", [topics.all_down(B), f"{topics.PREFIX}/+/down/#", "#", topics.all_up()]
)
def test_a_device_cannot_read_another_devices_topics(fleet: Fleet, wanted: str) -> None:
    with (
        mqtt.client(GATEWAY, fleet.port, fleet.gateway) as gateway,
        mqtt.client(A, fleet.port, fleet.a) as device,
    ):
        gateway.publish(topics.desired(B), b"retained for b", retain=True)
        device.subscribe(wanted)  # Mosquitto grants it, and delivers nothing
        assert device.subscribe(topics.all_down(A))
        gateway.publish(topics.down(B, "cmd"), b"live for b")
        gateway.publish(topics.down(A, "cmd"), b"for a")

        assert device.next().topic == topics.down(A, "cmd")
        while not device.received.empty():  # overlapping subscriptions may deliver it twice
            assert device.next().topic == topics.down(A, "cmd")


def test_a_device_that_takes_anothers_client_id_does_not_become_it(fleet: Fleet) -> None:
    with mqtt.client(B, fleet.port, fleet.b) as victim:
        assert victim.subscribe(topics.all_down(B))
        impostor = mqtt.Client(B, fleet.port, fleet.a)
        impostor.open()
        # Mosquitto lets it in as A; amqtt throws it out.
        if impostor.connected.wait(2):
            impostor.subscribe(topics.all_down(B))
        with mqtt.client(GATEWAY, fleet.port, fleet.gateway) as gateway:
            gateway.publish(topics.desired(B), b"for b", retain=True)
            gateway.publish(topics.desired(A), b"", retain=True)
        impostor.close()

        assert impostor.received.empty()


def test_anothers_client_id_leaves_the_victim_connected_on_mosquitto(
    keyring: Keyring, tmp_path: Path
) -> None:
    settings = Settings(data=tmp_path / "data", broker="mosquitto")
    now = datetime.now(UTC)  # noqa: TID251 - certificates are checked against the real clock
    local = broker.prepare(settings, keyring, services.free_port(), now)
    supervisor = Supervisor(tmp_path / "logs")
    try:
        supervisor.start(local.child)
        fleet = Fleet(keyring, local.port)
        with (
            mqtt.client(B, fleet.port, fleet.b) as victim,
            mqtt.client(B, fleet.port, fleet.a),
            mqtt.client(GATEWAY, fleet.port, fleet.gateway) as gateway,
        ):
            assert victim.subscribe(topics.all_down(B))
            gateway.publish(topics.desired(B), b"for b")

            assert victim.next().payload == b"for b"
    finally:
        supervisor.stop()


def test_a_will_on_another_devices_topic_is_never_delivered(fleet: Fleet) -> None:
    with mqtt.client(GATEWAY, fleet.port, fleet.gateway) as gateway:
        assert gateway.subscribe(topics.all_up())
        device = mqtt.Client(A, fleet.port, fleet.a, will=topics.up(B, "presence"))
        device.open()
        if device.connected.wait(2):
            device.drop()
        else:
            device.close()
        with mqtt.client(B, fleet.port, fleet.b) as other:
            other.publish(topics.up(B, "events"), b"marker")

        assert gateway.next().payload == b"marker"


def test_a_certificate_of_another_fleet_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    stranger = device_files(Keyring.open(tmp_path / "other"), A)
    files = ClientFiles(fleet.a.ca, stranger.certificate, stranger.key)
    client = mqtt.Client(A, fleet.port, files)

    _knock(client)

    assert not client.connected.is_set()


def test_nobody_gets_in_without_a_certificate(fleet: Fleet) -> None:
    client = mqtt.Client(A, fleet.port)

    _knock(client)

    assert not client.connected.is_set()


def _knock(client: mqtt.Client) -> None:
    """Try to get in, until the broker has closed the door."""
    try:
        client.open()
        assert client.disconnected.wait(mqtt.WAIT_S)
    except OSError:
        pass
    finally:
        client.close()


def test_a_broker_that_is_not_there_is_asked_for_by_name(
    keyring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("control_plane.local.mosquitto.PLACES", ())

    with pytest.raises(InvalidError, match="mosquitto is not on the PATH") as caught:
        broker.choose("mosquitto")

    assert caught.value.field == "FLOTILLA_BROKER"
    assert broker.choose("auto") == "amqtt"


def test_an_unknown_broker_is_refused_by_name() -> None:
    with pytest.raises(InvalidError, match="'emqx': use auto, mosquitto or amqtt"):
        broker.choose("emqx")
