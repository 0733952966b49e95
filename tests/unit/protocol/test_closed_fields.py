"""No prompt, answer or user text can leave a device: no field could carry one (invariant 9)."""

import types
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

import msgspec
import pytest

from agent.protocol.enrollment import EnrollRequest
from agent.protocol.messages import Bench, Event, Heartbeat, Hello, Presence, State

UP: list[type[msgspec.Struct]] = [Hello, Presence, State, Event, Bench, Heartbeat, EnrollRequest]

# Every string that a device may send, and what it is. Add one only with its reason.
ALLOWED = {
    "Hardware.arch": "uname's word",
    "Hardware.cpu": "the processor's name",
    "Hardware.flags": "processor features",
    "Hardware.os": "uname's word",
    "Hardware.board": "the board's name",
    "Hardware.runtimes": "package and version",
    "Hello.digest": "a digest",
    "Hello.last_known_good": "a digest",
    "Hello.agent": "a version",
    "Hello.capabilities": "feature names",
    "Hello.blueprint": "a name that the operator gave",
    "State.digest": "a digest",
    "State.previous": "a digest",
    "State.last_known_good": "a digest",
    "State.candidate": "a digest",
    "Event.execution": "an id that the server gave",
    "Event.digest": "a digest",
    "Bench.execution": "an id that the server gave",
    "Bench.candidate": "a digest",
    "Bench.incumbent": "a digest",
    "Bench.blocks": "names of series",
    "Metric.name": "one of five words",
    "Metric.unit": "ms, mb or share",
    "Heartbeat.digest": "a digest",
    "EnrollRequest.token": "given by the operator",
    "EnrollRequest.csr": "a certificate request",
    "EnrollRequest.blueprint": "a name that the operator gave",
    "EnrollRequest.labels": "given by the operator",
}
CLOSED = (int, float, bool, type(None))


def parts(hint: Any) -> Iterator[Any]:
    """Yield the plain types inside a type hint."""
    if typing.get_origin(hint) in (list, dict, tuple, typing.Union, types.UnionType):
        for argument in typing.get_args(hint):
            yield from parts(argument)
    else:
        yield hint


def open_fields(kind: type[msgspec.Struct]) -> Iterator[str]:
    """Yield each field that could carry more than numbers and closed words."""
    for field in msgspec.structs.fields(kind):
        for part in parts(field.type):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                yield from open_fields(part)
            elif not (isinstance(part, type) and issubclass(part, (*CLOSED, Enum))):
                yield f"{kind.__name__}.{field.name}"


def test_a_device_can_send_only_the_strings_that_are_allowed() -> None:
    assert {name for kind in UP for name in open_fields(kind)} == set(ALLOWED)


class Chatty(msgspec.Struct):
    said: str
    anything: Any
    raw: bytes
    n: int


@pytest.mark.parametrize("field", ["said", "anything", "raw"])
def test_a_field_that_could_carry_text_would_be_found(field: str) -> None:
    assert f"Chatty.{field}" in set(open_fields(Chatty))
