"""A plain MQTT client for tests: waits for what it expects, and keeps what it got."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.brokers import ClientFiles

WAIT_S = 10.0


class Got(NamedTuple):
    """A received message."""

    topic: str
    payload: bytes
    retain: bool


class Client:
    """One connection of a device or a gateway.

    Args:
        name: the client id.
        port: the broker's, on loopback.
        files: certificate and key; None for plain TCP.
        will: topic of a retained will.
    """

    def __init__(
        self, name: str, port: int, files: ClientFiles | None = None, *, will: str = ""
    ) -> None:
        self.received: queue.SimpleQueue[Got] = queue.SimpleQueue()
        self.connected = threading.Event()
        self.disconnected = threading.Event()
        self._subscribed: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._port = port
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv311, reconnect_on_failure=False
        )
        if will:
            self._client.will_set(will, b"will", 1, retain=True)
        if files:
            self._client.tls_set(str(files.ca), str(files.certificate), str(files.key))
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message

    def open(self) -> None:
        """Connect; raises what the socket raises."""
        self._client.connect("127.0.0.1", self._port, keepalive=30)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._end()

    def drop(self) -> None:
        """Vanish without a word, so that the broker sends the will."""
        sock = self._client.socket()
        assert sock is not None
        sock.close()
        self._end()

    def subscribe(self, topic: str) -> bool:
        """Subscribe; return whether the broker granted it."""
        self._client.subscribe(topic, 1)
        return self._subscribed.get(timeout=WAIT_S)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish with QoS 1 and wait for the broker's acknowledgement."""
        self._client.publish(topic, payload, 1, retain=retain).wait_for_publish(WAIT_S)

    def next(self) -> Got:
        """Return the next message; fails when none comes."""
        return self.received.get(timeout=WAIT_S)

    def _end(self) -> None:
        self._client.loop_stop()
        self._client._reset_sockets()  # paho leaves its wake-up sockets to the collector

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _p: Any) -> None:
        if not reason.is_failure:
            self.connected.set()

    def _on_disconnect(self, *_arguments: Any) -> None:
        self.disconnected.set()

    def _on_subscribe(self, _client: Any, _data: Any, _mid: Any, codes: Any, _p: Any) -> None:
        self._subscribed.put(not any(code.is_failure for code in codes))

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        self.received.put(Got(message.topic, bytes(message.payload), message.retain))


@contextmanager
def client(
    name: str, port: int, files: ClientFiles | None = None, *, will: str = ""
) -> Iterator[Client]:
    """Open a connection and close it at the end."""
    opened = Client(name, port, files, will=will)
    opened.open()
    try:
        assert opened.connected.wait(WAIT_S), f"{name} was not let in"
        yield opened
    finally:
        opened.close()
