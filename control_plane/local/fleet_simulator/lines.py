"""MQTT for many devices in one thread: paho's external loop under one selector, no thread each.

Only the blocking part of a connect (TCP and the TLS handshake) happens in a few threads; then the
connection belongs to the thread that calls `poll`.
"""

import contextlib
import queue
import selectors
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.protocol import messages, topics
from agent.protocol.enrollment import Broker
from agent.protocol.errors import UnknownTopicError
from agent.protocol.messages import Presence
from agent.protocol.topics import DeviceId

DIALERS = 8
DIAL_S = 20.0
"""For TCP and TLS; a broker that restarts has thousands of handshakes to do before ours."""
WILL_DELAY_S = 10
MAX_PACKET = 300_000
READ, BOTH = selectors.EVENT_READ, selectors.EVENT_READ | selectors.EVENT_WRITE


class Caller(NamedTuple):
    """Who connects."""

    device: DeviceId
    secret: str
    credentials: Path
    """Key and certificate in one PEM file."""


class Ears(NamedTuple):
    """Who is told what happens on a line, by the device's number."""

    up: Callable[[int], None]
    down: Callable[[int], None]
    """The connection ended, or never came to be."""
    arrived: Callable[[int, str, bytes], None]
    """Channel and payload of a message to the device."""


class Lines:
    """The connections of a fleet, at most one a device.

    Args:
        broker: where to.
        ca: the fleet's CA in PEM; for TLS.
        ears: who is told.
        keepalive_s: of MQTT.
        v5: MQTT 5 rather than 3.1.1.
    """

    def __init__(
        self, broker: Broker, ca: str, ears: Ears, *, keepalive_s: float, v5: bool = True
    ) -> None:
        self._broker = broker
        self._ears = ears
        self._keepalive_s = int(keepalive_s)
        self._protocol = MQTTProtocolVersion.MQTTv5 if v5 else MQTTProtocolVersion.MQTTv311
        self._tls = _SharedTls(ca) if broker.tls else None
        self._selector = selectors.DefaultSelector()
        self._dialers = ThreadPoolExecutor(DIALERS, thread_name_prefix="dial")
        self._dialed: queue.SimpleQueue[_Line] = queue.SimpleQueue()
        self._lines: dict[int, _Line] = {}
        self._bell, self._rope = socket.socketpair()
        self._bell.settimeout(0)
        self._rope.settimeout(0)
        self._selector.register(self._bell, READ, None)

    def __len__(self) -> int:
        return len(self._lines)

    def ring(self) -> None:
        """Make `poll` return; any thread may call this."""
        with contextlib.suppress(OSError):  # it rings already, or nobody listens any more
            self._rope.send(b"!")

    def dial(self, number: int, caller: Caller, connection: int) -> None:
        """Begin to connect a device; `up` or `down` follows."""
        line = _Line(self, number, caller, connection)
        self._lines[number] = line
        self._dialers.submit(self._dial, line)

    def publish(self, number: int, channel: str, message: bytes, qos: int) -> bool:
        """Send one message; False if there is no connection."""
        line = self._lines.get(number)
        if line is None or not line.ready:
            return False
        topic = topics.up(line.caller.device, channel)
        line.client.publish(topic, message, qos)
        self._settle(line)
        return True

    def cut(self, number: int) -> None:
        """End a connection as a power cut would: without a word."""
        line = self._lines.get(number)
        if line is not None:
            self._end(line)

    def goodbye(self, number: int) -> None:
        """End a connection in the agent's way: the will is not sent."""
        line = self._lines.get(number)
        if line is None or not line.ready:
            self.cut(number)
            return
        line.say_presence(online=False)
        line.ended = True  # its own end is no loss
        line.client.disconnect()
        self._end(line)

    def look_after(self, number: int) -> None:
        """Keep a connection alive, or find that it is dead; call it every now and then."""
        line = self._lines.get(number)
        if line is not None and line.ready and line.client.loop_misc() != 0:
            self._lost(line)
        elif line is not None and line.ready:
            self._settle(line)

    def give_up(self, number: int, connection: int) -> None:
        """End this connection, if it is still not answered."""
        line = self._lines.get(number)
        if line is not None and line.connection == connection and not line.ready:
            self._lost(line)

    def poll(self, timeout: float) -> None:
        """Read and write what can be, for at most so many seconds."""
        for key, mask in self._selector.select(timeout):
            line: _Line | None = key.data
            if line is None:
                self._answer_bell()
            elif not line.ended:
                self._serve(line, mask)

    def close(self) -> None:
        """End every connection and give back everything."""
        self._dialers.shutdown(wait=True, cancel_futures=True)
        self._answer_bell()
        for line in list(self._lines.values()):
            self._end(line)
        self._selector.close()
        self._bell.close()
        self._rope.close()

    # --- inside -----------------------------------------------------------------------------

    def _dial(self, line: "_Line") -> None:
        try:
            line.connect(self._broker, self._protocol, self._tls, self._keepalive_s)
        except (OSError, ValueError):
            line.failed = True
        self._dialed.put(line)
        self.ring()

    def _answer_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._bell.recv(4096):
                pass
        while not self._dialed.empty():
            line = self._dialed.get()
            sock = None if line.failed else line.client.socket()
            if sock is None:
                self._lost(line)
            elif line.ended:
                sock.close()
            else:
                line.watched = self._selector.register(sock, READ, line).fd
                self._serve(line, READ)  # what came with the handshake does not show on the socket

    def _serve(self, line: "_Line", mask: int) -> None:
        client = line.client
        good = MQTTErrorCode.MQTT_ERR_SUCCESS
        if mask & selectors.EVENT_WRITE and client.loop_write() != good:
            self._lost(line)
            return
        if mask & READ:
            fine = client.loop_read() == good
            while fine and not line.ended and _pending(client):
                fine = client.loop_read() == good
            if not fine or line.refused:
                self._lost(line)
                return
        self._settle(line)

    def _settle(self, line: "_Line") -> None:
        """Write what waits; what the socket does not take now goes when it can."""
        if line.ended:
            return
        client = line.client
        if client.want_write():
            client.loop_write()
        sock = client.socket()
        if sock is None:
            self._lost(line)
        elif client.want_write() != line.writing and line.watched >= 0:
            line.writing = not line.writing
            self._selector.modify(sock, BOTH if line.writing else READ, line)

    def _lost(self, line: "_Line") -> None:
        if not line.ended:
            self._end(line)
            self._ears.down(line.number)

    def _end(self, line: "_Line") -> None:
        line.ended = True
        if self._lines.get(line.number) is line:
            del self._lines[line.number]
        self.unwatch(line)
        sock = None if line.client is None else line.client.socket()
        if sock is not None and not line.dialing:
            sock.close()

    def unwatch(self, line: "_Line") -> None:
        """Forget a socket before it is closed."""
        if line.watched >= 0:
            self._selector.unregister(line.watched)
            line.watched = -1

    def came(self, line: "_Line") -> None:
        """A line is up: its subscription stands."""
        self._ears.up(line.number)

    def arrived(self, line: "_Line", channel: str, payload: bytes) -> None:
        """Hand up a message."""
        self._ears.arrived(line.number, channel, payload)


class _Line:
    """One connection of one device."""

    __slots__ = (
        "_lines",
        "caller",
        "client",
        "connection",
        "dialing",
        "ended",
        "failed",
        "number",
        "ready",
        "refused",
        "watched",
        "writing",
    )

    def __init__(self, lines: Lines, number: int, caller: Caller, connection: int) -> None:
        self._lines = lines
        self.number = number
        self.caller = caller
        self.connection = connection
        self.client: Any = None
        self.ready = self.refused = self.failed = self.ended = self.writing = False
        self.dialing = True
        self.watched = -1

    def connect(
        self,
        broker: Broker,
        protocol: MQTTProtocolVersion,
        tls: "_SharedTls | None",
        keepalive_s: int,
    ) -> None:
        """Open the connection and ask to be let in; raises what the socket raises."""
        v5 = protocol is MQTTProtocolVersion.MQTTv5
        self.client = client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.caller.device,
            clean_session=None if v5 else True,
            protocol=protocol,
            reconnect_on_failure=False,
        )
        client.connect_timeout = DIAL_S
        client.will_set(
            topics.up(self.caller.device, "presence"),
            self._presence(online=False),
            qos=1,
            retain=True,
            properties=_will() if v5 else None,
        )
        if tls is None:
            client.username_pw_set(self.caller.device, self.caller.secret)
        else:
            client.tls_set_context(tls.of(self.caller))
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_socket_close = self._on_socket_close
        options: dict[str, Any] = {"clean_start": True, "properties": _session()} if v5 else {}
        try:
            client.connect(broker.host, broker.port, keepalive_s, **options)
        finally:
            self.dialing = False

    def say_presence(self, *, online: bool) -> None:
        topic = topics.up(self.caller.device, "presence")
        self.client.publish(topic, self._presence(online=online), 1, retain=True)

    def _presence(self, *, online: bool) -> bytes:
        return messages.encode(Presence(online=online, connection=self.connection))

    # --- paho calls these --------------------------------------------------------------------

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
        if reason.is_failure:
            self.refused = True
        else:
            client.subscribe(topics.all_down(self.caller.device), qos=1)

    def _on_subscribe(self, _c: Any, _d: Any, _mid: int, reasons: Any, _more: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self.refused = True
            return
        self.ready = True
        self.say_presence(online=True)
        self._lines.came(self)

    def _on_message(self, _client: Any, _data: Any, message: MQTTMessage) -> None:
        try:
            channel = topics.parse(message.topic).channel
        except UnknownTopicError:
            return
        self._lines.arrived(self, channel, bytes(message.payload))

    def _on_socket_close(self, _client: Any, _data: Any, _sock: Any) -> None:
        if not self.dialing:
            self._lines.unwatch(self)


class _SharedTls:
    """One TLS context for all devices: a connection keeps the certificate it was made with.

    A context for each would take a hundred times the memory. `SSL_new(3)`: a connection inherits
    the settings of its context, the certificate among them, at the moment in which it is made.
    """

    def __init__(self, ca: str) -> None:
        self._context = ssl.create_default_context(cadata=ca)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._lock = threading.Lock()

    def of(self, caller: Caller) -> Any:
        """Return what paho takes for a context of this device."""
        return _OneTls(self, caller)

    def wrap(self, caller: Caller, sock: socket.socket, **how: Any) -> ssl.SSLSocket:
        with self._lock:
            self._context.load_cert_chain(caller.credentials)
            return self._context.wrap_socket(sock, **how)


class _OneTls:
    """What paho uses of an SSLContext."""

    check_hostname = True

    def __init__(self, shared: _SharedTls, caller: Caller) -> None:
        self._shared = shared
        self._caller = caller

    def wrap_socket(self, sock: socket.socket, **how: Any) -> ssl.SSLSocket:
        return self._shared.wrap(self._caller, sock, **how)


def _pending(client: Any) -> bool:
    """Return whether TLS has read more than it has given: the selector does not see that."""
    sock = client.socket()
    return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0


def _session() -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho
    properties.SessionExpiryInterval = WILL_DELAY_S + 5
    properties.MaximumPacketSize = MAX_PACKET
    return properties


def _will() -> Properties:
    properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]  # paho
    properties.WillDelayInterval = WILL_DELAY_S
    return properties
