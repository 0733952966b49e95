"""The part of MQTT 3.1.1 that played devices speak: QoS 0 and 1, one subscription.

Packets as in the OASIS standard, sections 2 and 3. A general client costs 30 to 50 µs a message,
which would measure the load generator; the product itself speaks through paho.
"""

from collections.abc import Iterable
from typing import NamedTuple

# The first byte of a packet, without flags (table 2.1).
CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP = 0x20, 0x30, 0x40, 0x90, 0xD0
PING = b"\xc0\x00"
DISCONNECT = b"\xe0\x00"

MAX_PACKET = 1_048_576
"""More than any broker of ours accepts; a longer one is a peer that does not speak MQTT."""
REFUSALS = {
    1: "Unsupported protocol version",
    2: "Client identifier not valid",
    3: "Server unavailable",
    4: "Bad user name or password",
    5: "Not authorized",
}
REFUSED_SUBSCRIPTION = 0x80
LAST_ID = 65_535

_RETAIN, _QOS1, _DUP = 0x01, 0x02, 0x08
_CLEAN, _PASSWORD, _USERNAME = 0x02, 0x40, 0x80
_MORE = 0x80
_LENGTH_BYTES = 4


class PacketError(Exception):
    """What came is not MQTT: says at which packet."""


class Publish(NamedTuple):
    """A message from the broker; `topic` is what came, not yet known to be UTF-8."""

    topic: bytes
    payload: bytes
    mid: int
    """Acknowledged by this number; 0 for QoS 0."""
    retain: bool


class Reply(NamedTuple):
    """Any other packet: its kind, and what follows the length."""

    kind: int
    body: bytes

    @property
    def mid(self) -> int:
        """Return the message id that it answers."""
        return int.from_bytes(self.body[:2], "big")


class Reader:
    """Cuts a stream of bytes into packets."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Publish | Reply]:
        """Return the packets that are whole now.

        Raises:
            PacketError: the peer does not speak MQTT.
        """
        buffer = self._rest + data if self._rest else data
        found: list[Publish | Reply] = []
        at, end = 0, len(buffer)
        while end - at >= 2:
            length, start = buffer[at + 1], at + 2
            if length >= _MORE:
                length, start = _length(buffer, at + 1)
                if start == 0:
                    break
            if start + length > end:
                break
            head, body = buffer[at], buffer[start : start + length]
            kind = head & 0xF0
            found.append(_publish(head, body) if kind == PUBLISH else Reply(kind, body))
            at = start + length
        self._rest = buffer[at:]
        return found


def _length(buffer: bytes, at: int) -> tuple[int, int]:
    """Return (length, where the body starts), or (0, 0) while a byte of it is missing."""
    length = 0
    for index, byte in enumerate(buffer[at : at + _LENGTH_BYTES]):
        length |= (byte & 0x7F) << (7 * index)
        if byte < _MORE:
            if length > MAX_PACKET:
                raise PacketError(f"a packet of {length} bytes")
            return length, at + index + 1
    if len(buffer) - at >= _LENGTH_BYTES:
        raise PacketError("a length of more than four bytes")
    return 0, 0


def _publish(head: int, body: bytes) -> Publish:
    name_end = 2 + int.from_bytes(body[:2], "big")
    if not head & _QOS1:
        if len(body) < name_end:
            raise PacketError("a PUBLISH that ends in its topic")
        return Publish(body[2:name_end], body[name_end:], 0, bool(head & _RETAIN))
    start = name_end + 2
    if len(body) < start:
        raise PacketError("a PUBLISH that ends in its topic")
    mid = int.from_bytes(body[name_end:start], "big")
    return Publish(body[2:name_end], body[start:], mid, bool(head & _RETAIN))


def connect(client_id: str, keepalive_s: int, username: str = "", password: str = "") -> bytes:
    """Return a CONNECT that keeps its session."""
    flags = (_USERNAME if username else 0) | (_PASSWORD if password else 0)
    head = _text("MQTT") + bytes((4, flags)) + keepalive_s.to_bytes(2, "big")
    return _packet(0x10, head + b"".join(map(_text, filter(None, (client_id, username, password)))))


def subscribe(mid: int, topic_filter: str) -> bytes:
    """Return a SUBSCRIBE to one filter at QoS 1."""
    return _packet(0x82, mid.to_bytes(2, "big") + _text(topic_filter) + b"\x01")


def publish(topic: str, payload: bytes, *, mid: int = 0, retain: bool = False) -> bytes:
    """Return a PUBLISH; QoS 1 if it has a message id."""
    head = PUBLISH | (_QOS1 if mid else 0) | (_RETAIN if retain else 0)
    name = _text(topic)
    return _packet(head, (name + mid.to_bytes(2, "big") if mid else name) + payload)


def pubacks(mids: Iterable[int]) -> bytes:
    """Return the acknowledgements of messages."""
    return b"".join([b"\x40\x02" + mid.to_bytes(2, "big") for mid in mids])


def _text(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(2, "big") + encoded


def _packet(head: int, body: bytes) -> bytes:
    length = len(body)
    if length < _MORE:
        return bytes((head, length)) + body
    coded = bytearray((head,))
    while length >= _MORE:
        coded.append(length & 0x7F | _MORE)
        length >>= 7
    coded.append(length)
    return bytes(coded) + body
