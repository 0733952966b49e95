"""A broker that knows no MQTT 5: one that says so is in the stories; this one says nothing."""

import queue
import socket
import threading
from collections.abc import Iterator

import pytest

from agent import link
from agent.protocol.enrollment import Broker
from agent.protocol.topics import DeviceId

NAME = b"\0\4MQTT"  # the protocol level follows it: MQTT 3.1.1 section 3.1.2.2
LEVEL_5, LEVEL_311 = 5, 4


@pytest.fixture
def silent_broker() -> Iterator[tuple[int, "queue.Queue[int]"]]:
    """Takes connections, reads the CONNECT, and never answers; yields port and levels seen."""
    levels: queue.Queue[int] = queue.Queue()
    held: list[socket.socket] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            held.append(connection)
            asked = connection.recv(4096)
            levels.put(asked[asked.index(NAME) + len(NAME)])

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.getsockname()[1], levels
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()
    for connection in held:
        connection.close()


def test_a_silent_broker_is_asked_again_in_the_older_protocol_and_then_the_newer(
    silent_broker: tuple[int, "queue.Queue[int]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, levels = silent_broker
    monkeypatch.setattr(link, "ANSWER_S", 0.2)  # the wait itself is not what is tested
    connection = link.Link(
        link.Account(DeviceId("edge-1"), Broker("127.0.0.1", port, tls=False), "secret", None),
        hand_up=lambda _news: None,
        boot=1,
        reconnect_base_s=0.01,
        reconnect_cap_s=0.05,
    )
    connection.start()
    seen = [levels.get(timeout=20) for _ in range(3)]
    connection.stop()
    assert seen == [LEVEL_5, LEVEL_311, LEVEL_5]
