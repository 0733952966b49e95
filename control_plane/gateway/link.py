"""The gateway's connection to the broker: one client for each connection, driven by one thread."""

import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from select import POLLIN, POLLOUT, poll
from typing import NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from control_plane.gateway.wire import WireSocket
from control_plane.observability import logger

KEEPALIVE_S = 60
CONNECT_S = 5.0
MOST_READ = 250

log = logger(__name__)


class Publish(NamedTuple):
    """A message from the broker; `topic` is what came, not yet known to be UTF-8."""

    topic: bytes
    payload: bytes
    mid: int
    """Acknowledged by this number; 0 for QoS 0."""
    retain: bool


class LinkError(Exception):
    """No connection: says which broker and why."""


@dataclass(frozen=True)
class BrokerAddress:
    """Which broker, and who we are there.

    Where the broker takes the client id from the certificate, `client_id` is its name too.
    """

    host: str
    port: int
    client_id: str
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Link:
    """One connection after another, each with a client of its own.

    What a lost connection had in hand (message ids above all) means nothing to the next one, so
    nothing of it is kept: the broker delivers again what was not acknowledged.

    Args:
        address: the broker.
        topic_filter: what to subscribe.
        on_message: called in `pump` for each message.
        on_published: called in `pump` with a message id that the broker has acknowledged.
    """

    def __init__(
        self,
        address: BrokerAddress,
        topic_filter: str,
        *,
        on_message: Callable[[Publish], None],
        on_published: Callable[[int], None],
    ) -> None:
        self.address = address
        self._filter = topic_filter
        self._on_message = on_message
        self._on_published = on_published
        self._client: mqtt.Client | None = None
        self._refusal = ""
        self._ready = False
        self._heard = 0

    def open(self) -> None:
        """Connect and subscribe; `LinkError` says why not."""
        self.close()
        client = self._new_client()
        self._refusal, self._ready = "", False
        try:
            client.connect(self.address.host, self.address.port, KEEPALIVE_S)
        except (OSError, ValueError) as error:
            raise LinkError(f"broker {self.address}: {error}") from error
        self._client = client
        give_up = time.monotonic() + CONNECT_S
        while not self._ready:
            alive = self.pump(0.1)
            if self._refusal or not alive or time.monotonic() > give_up:
                self.close()
                why = self._refusal or ("no answer" if alive else "connection closed")
                raise LinkError(f"broker {self.address}: {why}")

    def pump(self, timeout: float) -> bool:
        """Write, and read what comes within `timeout` seconds; False when the connection is lost.

        Waits for the first message only, and reads no more than `MOST_READ`.
        """
        client = self._client
        if client is None or not self._write(client):
            return False
        if self._wait(client, timeout):
            enough = self._heard + MOST_READ
            heard = -1
            while heard < self._heard < enough:
                heard = self._heard
                # One packet; while orders are in flight, as many as those.
                if client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                    return False
        return client.loop_misc() == MQTTErrorCode.MQTT_ERR_SUCCESS

    def pump_writes(self) -> bool:
        """Write and keep alive without reading; False when the connection is lost.

        Unread messages stay with the broker: its window does not protect us, our reading does.
        """
        client = self._client
        return (
            client is not None
            and self._write(client)
            and client.loop_misc() == MQTTErrorCode.MQTT_ERR_SUCCESS
        )

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """Send a message at QoS 1 and return its id; whether it went, `on_published` says."""
        assert self._client is not None, "open() first"  # noqa: S101 - a mistake of ours
        return self._client.publish(topic, payload, qos=1, retain=retain).mid

    def tell(self, topic: str, payload: bytes) -> None:
        """Send a message at QoS 0: for what is repeated when it does not arrive."""
        assert self._client is not None, "open() first"  # noqa: S101 - a mistake of ours
        self._client.publish(topic, payload, qos=0)

    def acknowledge(self, messages: Iterable[Publish]) -> None:
        """Tell the broker that messages, received on this connection, are done with."""
        client = self._client
        if client is not None:
            for message in messages:
                if message.mid:
                    client.ack(message.mid, 1)
            self._write(client)

    def close(self) -> None:
        """Disconnect; the session, with what is unacknowledged, stays with the broker."""
        client, self._client = self._client, None
        if client is not None:
            # Else a goodbye would call back into whoever uses us.
            client.on_disconnect = client.on_message = client.on_publish = None
            client.disconnect()
            client.loop_write()

    def _write(self, client: mqtt.Client) -> bool:
        """Send what waits, as far as the broker takes it; False when the connection is lost."""
        try:
            # It would be told of each QoS 0 message that this writes, at the cost of another one.
            client.on_publish = None
            if client.want_write() and client.loop_write() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return False
            socket = client.socket()
            if isinstance(socket, WireSocket):
                socket.flush()
        except OSError:
            return False
        finally:
            client.on_publish = self._published
        return True

    def _wait(self, client: mqtt.Client, timeout: float) -> bool:
        """Wait until there is something to read, or room for what is left to write."""
        socket = client.socket()
        if socket is None or (isinstance(socket, WireSocket) and socket.pending()):
            return True
        unsent = client.want_write() or (isinstance(socket, WireSocket) and socket.unsent)
        ready = poll()
        ready.register(socket, POLLIN | POLLOUT if unsent else POLLIN)
        return any(event & ~POLLOUT for _, event in ready.poll(timeout * 1000))

    def _new_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.address.client_id,
            clean_session=False,
            protocol=mqtt.MQTTv311,
            manual_ack=True,
        )
        client.connect_timeout = CONNECT_S
        # No limit of paho's: with one it scans what is in flight at every PUBACK. The relay limits.
        client.max_inflight_messages_set(0)
        if self.address.username:
            client.username_pw_set(self.address.username, self.address.password)
        if self.address.tls is not None:
            client.tls_set_context(self.address.tls)
        # With it the client leaves writing to us: many packets at once.
        client.on_socket_register_write = _register_write
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = self._received
        client.on_publish = self._published
        return client

    def _connected(
        self,
        client: mqtt.Client,
        _data: object,
        _flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._heard += 1
        if reason.is_failure:
            self._refusal = f"refused: {reason}"
        else:
            client.subscribe(self._filter, qos=1)

    def _subscribed(
        self,
        _client: mqtt.Client,
        _data: object,
        _mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refusal = "refused the subscription; see its access rules for the gateway"
        self._ready = True

    def _received(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        self._heard += 1
        # Its `topic` would decode, and raise inside the client for what is not UTF-8.
        mid = message.mid if message.qos else 0
        self._on_message(Publish(message._topic, bytes(message.payload), mid, message.retain))  # noqa: SLF001

    def _published(
        self,
        _client: mqtt.Client,
        _data: object,
        mid: int,
        _reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._heard += 1
        self._on_published(mid)


def _register_write(_client: mqtt.Client, _data: object, _socket: object) -> None:
    """Do nothing: `pump` looks for itself."""
