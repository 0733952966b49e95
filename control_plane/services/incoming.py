"""Messages from devices, read and checked before anything is stored."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, get_type_hints

import msgspec

from agent.protocol import messages, topics
from agent.protocol.errors import MalformedError, ProtocolError, UnknownTopicError
from agent.protocol.manifest import SHA256
from agent.protocol.messages import (
    Bench,
    Event,
    Hardware,
    Heartbeat,
    Hello,
    Metric,
    Presence,
    State,
)
from control_plane.domain.device import DeviceId
from control_plane.domain.errors import InvalidError
from control_plane.services.device_facts import checked_hardware

Body = Hello | Presence | State | Event | Bench | Heartbeat

_KINDS: dict[str, type[Body]] = {
    "hello": Hello,
    "presence": Presence,
    "state": State,
    "events": Event,
    "bench": Bench,
    "heartbeat": Heartbeat,
}
_DIGESTS = frozenset({"digest", "previous", "last_known_good", "candidate", "incumbent"})
# Texts as long as their columns; the rest are words of closed lists.
_LENGTHS = {"execution": 36, "agent": 32, "blueprint": 128, "name": 32, "unit": 16}
_MAX_INTEGER = 2**63 - 1
_LIMITS = {"n": 2**31 - 1}
# Where the keys are the sender's choice, they are names and no place for a text.
_SERIES = re.compile(r"[a-z_.]{1,64}")
_MAX_SERIES = 64


class Incoming(NamedTuple):
    """A message as the broker delivers it."""

    topic: str
    payload: bytes
    retained: bool = False
    """The broker's memory, not a message of now."""


class Message(NamedTuple):
    """A message that was read."""

    device: DeviceId
    body: Body
    retained: bool
    hardware: dict[str, Any] | None = None
    """Of a hello that tells it."""


def read(incoming: Incoming) -> Message:
    """Read one message; `ProtocolError` says what is wrong with it."""
    topic = topics.parse(incoming.topic)
    if topic.direction != "up":
        raise UnknownTopicError(f"topic {incoming.topic[:120]!r} is not a device's to write")
    body: Body = messages.decode(incoming.payload, _KINDS[topic.channel])
    _check(body)
    hardware = None
    if isinstance(body, Hello) and body.hardware != Hardware():
        hardware = _hardware(body)
    return Message(DeviceId(topic.device), body, incoming.retained, hardware)


def read_all(incoming: Sequence[Incoming], refused: dict[str, int]) -> list[Message]:
    """Read messages; count each unreadable one in `refused` by its code and drop it."""
    found: list[Message] = []
    for one in incoming:
        try:
            found.append(read(one))
        except ProtocolError as error:
            refused[error.code] = refused.get(error.code, 0) + 1
    return found


def _hardware(hello: Hello) -> dict[str, Any]:
    try:
        return checked_hardware(hello.hardware)
    except InvalidError as error:
        raise MalformedError(f"Hello: {error.field}: {error.message}") from error


class _Bounds(NamedTuple):
    """What the fields of one message may hold."""

    digests: tuple[str, ...]
    texts: tuple[tuple[str, int], ...]
    integers: tuple[tuple[str, int], ...]


@cache
def _bounds(kind: type[msgspec.Struct]) -> _Bounds:
    types = get_type_hints(kind)
    of = {
        one: [name for name in kind.__struct_fields__ if types[name] is one] for one in (str, int)
    }
    return _Bounds(
        tuple(name for name in of[str] if name in _DIGESTS),
        tuple((name, _LENGTHS.get(name, 64)) for name in of[str] if name not in _DIGESTS),
        tuple((name, _LIMITS.get(name, _MAX_INTEGER)) for name in of[int]),
    )


def _check(body: Body | Metric) -> None:
    """Refuse what no column could hold; one such row would fail its whole batch."""
    kind = type(body)
    bounds = _bounds(kind)
    for name, limit in bounds.integers:
        if not 0 <= getattr(body, name) <= limit:
            raise MalformedError(f"{kind.__name__}: {name} is out of range")
    for name in bounds.digests:
        value = getattr(body, name)
        if value and not SHA256.fullmatch(value):
            raise MalformedError(f"{kind.__name__}: {name} is not a SHA-256 in hex")
    for name, length in bounds.texts:
        value = getattr(body, name)
        if len(value) > length or not value.isprintable():
            raise MalformedError(f"{kind.__name__}: {name} is too long or not printable")
    if isinstance(body, Bench):
        for metric in body.metrics:
            _check(metric)
        _check_series(body.blocks)


def _check_series(blocks: Mapping[str, object]) -> None:
    if len(blocks) > _MAX_SERIES or not all(map(_SERIES.fullmatch, blocks)):
        raise MalformedError(
            f"Bench: blocks: expected up to {_MAX_SERIES} series with names of a-z, '_' and '.'"
        )
