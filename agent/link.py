"""MQTT: one connection after another to the broker, each with its own will and number.

The link only carries: it hands up what arrives and sends what it is given while it is connected.
What must not get lost lives in the journal and is sent again (agent/runtime.py).
"""

import contextlib
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import LinkError
from agent.protocol import backoff, messages, topics
from agent.protocol.enrollment import Broker
from agent.protocol.errors import ProtocolError, UnknownTopicError
from agent.protocol.messages import BackOff, Presence
from agent.protocol.topics import DeviceId
from agent.web import is_loopback

log = logging.getLogger(__name__)

KEEPALIVE_S = 60
# A short break must not look like a death: the broker waits so long before it tells the will.
WILL_DELAY_S = 10
GOODBYE_S = 2.0
# A broker that knows no MQTT 5 may say so, or wait for ever for what it takes to be missing.
ANSWER_S = 10.0
MAX_WAITING = 1000  # more than a journal holds; a slow line must not fill the memory
MAX_PACKET = 300_000  # an envelope is 262,144 bytes at most
UNSUPPORTED_PROTOCOL = 132  # MQTT 5 section 3.2.2.2


@dataclass(frozen=True)
class Connected:
    """The broker took us and our subscription."""

    connection: int


@dataclass(frozen=True)
class Disconnected:
    """The connection is gone."""


@dataclass(frozen=True)
class Received:
    """A message to this device."""

    channel: str
    payload: bytes


News = Connected | Disconnected | Received


@dataclass(frozen=True)
class Account:
    """Where to connect, and as whom."""

    device: DeviceId
    broker: Broker
    secret: str
    tls: ssl.SSLContext | None


def account(
    device: DeviceId, broker: Broker, secret: str, tls: Callable[[], ssl.SSLContext]
) -> Account:
    """Return an account that may be used.

    Raises:
        LinkError: without TLS the secret would travel in the clear to another machine.
    """
    if broker.tls:
        return Account(device, broker, secret, tls())
    if not is_loopback(broker.host):
        raise LinkError(
            f"broker {broker.host}:{broker.port}: refused without TLS, since it is not this "
            "machine; switch TLS on at the broker and enrol again"
        )
    return Account(device, broker, secret, None)


class Link:
    """Keeps one connection up, in a thread of its own, until it is stopped."""

    def __init__(
        self,
        account: Account,
        *,
        hand_up: Callable[[News], None],
        boot: int,
        reconnect_base_s: float,
        reconnect_cap_s: float,
    ) -> None:
        self._account = account
        self._hand_up = hand_up
        self._base_s = reconnect_base_s
        self._cap_s = reconnect_cap_s
        # Grows over connections and starts: the boot epoch is in the high bits.
        self._connection = boot << 20
        self._protocol = MQTTProtocolVersion.MQTTv5
        self._stopping = threading.Event()
        self._answered = threading.Event()
        self._ended = threading.Event()
        self._client: Client | None = None
        self._failures = 0
        self._came_at: float | None = None
        self._patient_until = 0.0
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def publish(self, channel: str, message: bytes, *, retain: bool = False, qos: int = 1) -> None:
        """Send one message if there is a connection and room; otherwise it is dropped."""
        client = self._client
        if client is not None and client.is_connected():
            client.publish(topics.up(self._account.device, channel), message, qos, retain)

    def stop(self) -> None:
        """Say goodbye (a graceful end has no will), and disconnect."""
        self._stopping.set()
        client = self._client
        if client is not None and client.is_connected():
            topic = topics.up(self._account.device, "presence")
            said = client.publish(topic, self._presence(online=False), 1, retain=True)
            try:
                said.wait_for_publish(GOODBYE_S)
            except (RuntimeError, ValueError):
                log.info("link.goodbye_unsent")
            client.disconnect()
        self._thread.join(GOODBYE_S)

    # --- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._connection += 1
            self._answered.clear()
            self._ended.clear()
            client = self._client = self._make_client()
            broker = self._account.broker
            try:
                client.connect(broker.host, broker.port, KEEPALIVE_S, **self._connect_options())
                # Paho's own thread, not ours: only then does it leave writing to that thread,
                # and two threads inside one TLS connection break it.
                client.loop_start()
                error = self._until_it_ends(client)
                client.loop_stop()
            except (OSError, ValueError) as fault:
                error = str(fault) or type(fault).__name__
            self._client = None
            self._hand_up(Disconnected())
            if self._stopping.is_set():
                return
            pause = self._pause()
            log.warning(
                "broker.unreachable host=%s port=%s error=%r retry_in_s=%.1f",
                broker.host,
                broker.port,
                error,
                pause,
            )
            self._stopping.wait(pause)

    def _until_it_ends(self, client: Client) -> str:
        """Wait for the end of a connection, and return why it ended."""
        if self._answered.wait(ANSWER_S):
            self._ended.wait()
            return "the connection ended"
        self._protocol = _other(self._protocol)
        client.disconnect()
        self._ended.wait(GOODBYE_S)
        return f"no answer in {ANSWER_S:g} s"

    def _pause(self) -> float:
        """Full jitter: after an outage a whole fleet must not come back in one second."""
        came_at, self._came_at = self._came_at, None
        if came_at is not None and time.monotonic() - came_at >= backoff.STEADY_S:
            self._failures = 0
        most = backoff.longest_pause_s(
            self._failures,
            base_s=self._base_s,
            cap_s=self._cap_s,
            told_s=self._patient_until - time.monotonic(),
        )
        self._failures += 1
        return random.uniform(0, most)  # noqa: S311 - spreads load, guards nothing

    def _connect_options(self) -> dict[str, Any]:
        if self._protocol is not MQTTProtocolVersion.MQTTv5:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho
        properties.SessionExpiryInterval = WILL_DELAY_S + 5
        properties.MaximumPacketSize = MAX_PACKET
        return {"clean_start": True, "properties": properties}

    def _make_client(self) -> Client:
        v5 = self._protocol is MQTTProtocolVersion.MQTTv5
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._account.device,
            clean_session=None if v5 else True,
            protocol=self._protocol,
            reconnect_on_failure=False,  # we reconnect: with jitter, and a new will each time
        )
        client.max_queued_messages_set(MAX_WAITING)
        client.will_set(
            topics.up(self._account.device, "presence"),
            self._presence(online=False),
            qos=1,
            retain=True,
            properties=_will_properties() if v5 else None,
        )
        if self._account.tls is not None:
            client.tls_set_context(self._account.tls)
        else:
            client.username_pw_set(self._account.device, self._account.secret)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        return client

    def _presence(self, *, online: bool) -> bytes:
        return messages.encode(Presence(online=online, connection=self._connection))

    # --- paho calls these, in its thread ------------------------------------------------------

    def _on_connect(
        self,
        client: Client,
        _data: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._answered.set()
        if reason.value == UNSUPPORTED_PROTOCOL:
            log.info("broker.speaks_older_mqtt")
            self._protocol = MQTTProtocolVersion.MQTTv311
            self._failures = 0
        elif reason.is_failure:
            log.warning("broker.refused reason=%s", reason)
        else:
            client.subscribe(topics.all_down(self._account.device), qos=1)

    def _on_subscribe(
        self,
        client: Client,
        _data: object,
        _mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            log.warning("broker.subscription_refused reason=%s", reasons[0])
            client.disconnect()
            return
        self._came_at = time.monotonic()
        log.info("link.connected connection=%s", self._connection)
        self.publish("presence", self._presence(online=True), retain=True)
        self._hand_up(Connected(self._connection))

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        try:
            topic = topics.parse(message.topic)
        except UnknownTopicError as error:
            log.warning("message.unknown_topic error=%s", error)
            return
        if topic.channel == "cmd":
            self._heed(bytes(message.payload))
        self._hand_up(Received(topic.channel, bytes(message.payload)))

    def _heed(self, payload: bytes) -> None:
        """Note if the control plane asks who loses the connection now not to be back soon."""
        with contextlib.suppress(ProtocolError):  # another command, or the runtime says what
            asked = messages.decode(payload, BackOff)
            self._patient_until = time.monotonic() + asked.seconds

    def _on_disconnect(
        self,
        _client: Client,
        _data: object,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        log.info("link.disconnected reason=%s", reason)
        self._answered.set()
        self._ended.set()


def _other(protocol: MQTTProtocolVersion) -> MQTTProtocolVersion:
    v5, v311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
    return v311 if protocol is v5 else v5


def _will_properties() -> Properties:
    properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]  # paho
    properties.WillDelayInterval = WILL_DELAY_S
    return properties
