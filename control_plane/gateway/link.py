"""The gateway's connection to the broker: one client for each connection, driven by one thread."""

import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from control_plane.gateway.tls import GatheringSocket
from control_plane.observability import logger

KEEPALIVE_S = 60
CONNECT_S = 5.0
FULL_S = 0.01
"""How long to wait where the network takes no more for now."""

MID_BYTES = 2
_ACKNOWLEDGED = ReasonCode(PacketTypes.PUBACK)
_NO_PROPERTIES = Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call]  # of paho

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


class _Client(mqtt.Client):
    """paho's client, with a PUBACK read as what it is in 3.1.1: a message id, nothing else.

    paho makes a reason code and properties of MQTT 5 for each, which costs as much as the rest.
    """

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        packet = self._in_packet["packet"]
        if cmd != "PUBACK" or len(packet) != MID_BYTES:
            return super()._handle_pubackcomp(cmd)
        mid = int.from_bytes(packet, "big")
        with self._out_message_mutex:
            if mid in self._out_messages:
                return self._do_on_publish(mid, _ACKNOWLEDGED, _NO_PROPERTIES)
        return MQTTErrorCode.MQTT_ERR_SUCCESS


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
        """Read and write for up to `timeout` seconds; False when the connection is lost."""
        client = self._client
        if client is None:
            return False
        try:
            wait = timeout if self._flush() else min(timeout, FULL_S)
            alive = client.loop(wait) == MQTTErrorCode.MQTT_ERR_SUCCESS
            self._flush()
        except OSError:
            return False
        return alive

    def pump_writes(self) -> bool:
        """Write and keep alive without reading; False when the connection is lost.

        Unread messages stay with the broker: its window does not protect us, our reading does.
        """
        client = self._client
        if client is None:
            return False
        written = client.loop_write() if client.want_write() else MQTTErrorCode.MQTT_ERR_SUCCESS
        alive = (
            written == MQTTErrorCode.MQTT_ERR_SUCCESS
            and client.loop_misc() == MQTTErrorCode.MQTT_ERR_SUCCESS
        )
        try:
            self._flush()
        except OSError:
            return False
        return alive

    def _flush(self) -> bool:
        """Write what TLS has gathered; False when the network takes no more for now."""
        socket = self._client.socket() if self._client is not None else None
        return socket.flush() if isinstance(socket, GatheringSocket) else True

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
        if self._client is not None:
            for message in messages:
                if message.mid:
                    self._client.ack(message.mid, 1)

    def close(self) -> None:
        """Disconnect; the session, with what is unacknowledged, stays with the broker."""
        client, self._client = self._client, None
        if client is not None:
            # Else a goodbye would call back into whoever uses us.
            client.on_disconnect = client.on_message = client.on_publish = None
            socket = client.socket()
            if isinstance(socket, GatheringSocket):
                socket.stop_gathering()
            client.disconnect()

    def _new_client(self) -> mqtt.Client:
        client = _Client(
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
        self._on_published(mid)
