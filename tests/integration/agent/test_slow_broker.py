"""A broker that takes messages and acknowledges none: they must not pile up in the agent."""

import queue
import socket
import threading
from collections.abc import Iterator

import pytest

from agent import link
from agent.protocol.enrollment import Broker
from agent.protocol.topics import DeviceId

WAIT_S = 20.0
CONNECT, PUBLISH, SUBSCRIBE = 1, 3, 8
CONNACK = b"\x20\x03\x00\x00\x00"


def _packets(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Yield kind and body of each MQTT packet until the connection ends."""
    with connection.makefile("rb") as read:
        while head := read.read(1):
            length = shift = 0
            while True:
                byte = read.read(1)[0]
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            yield head[0] >> 4, read.read(length)


@pytest.fixture
def slow_broker() -> Iterator[tuple[int, "queue.Queue[bytes]"]]:
    """A broker that never acknowledges a message; and the messages that it got."""
    server = socket.create_server(("127.0.0.1", 0))
    got: queue.Queue[bytes] = queue.Queue()

    def serve() -> None:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            for kind, body in _packets(connection):
                if kind == CONNECT:
                    connection.sendall(CONNACK)
                elif kind == SUBSCRIBE:
                    connection.sendall(b"\x90\x04" + body[:2] + b"\x00\x01")
                elif kind == PUBLISH:
                    got.put(body)

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.getsockname()[1], got
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_what_a_slow_broker_does_not_take_is_dropped_and_not_hoarded(
    slow_broker: tuple[int, "queue.Queue[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, got = slow_broker
    news: queue.Queue[link.News] = queue.Queue()
    monkeypatch.setattr(link, "MAX_WAITING", 3)
    monkeypatch.setattr(link, "GOODBYE_S", 0.1)
    connection = link.Link(
        link.Account(DeviceId("edge-1"), Broker("127.0.0.1", port, tls=False), "secret", None),
        hand_up=news.put,
        boot=1,
        reconnect_base_s=60.0,
        reconnect_cap_s=60.0,
    )
    connection.start()
    assert isinstance(news.get(timeout=WAIT_S), link.Connected)
    for _ in range(10):
        connection.publish("events", b"{}")
    connection.publish("heartbeat", b"{}", qos=0)
    seen = [got.get(timeout=WAIT_S)]
    while b"/heartbeat" not in seen[-1]:
        seen.append(got.get(timeout=WAIT_S))
    connection.stop()
    assert sum(b"/events" in body for body in seen) == 2, "beside the presence there was room for 2"
