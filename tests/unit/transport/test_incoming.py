"""Messages from devices: whatever comes, it is read or refused, and nothing else happens."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.protocol.errors import ProtocolError
from agent.protocol.topics import DOWN_CHANNELS, UP_CHANNELS
from control_plane.services import incoming
from control_plane.services.incoming import Incoming

SHA = "a" * 64
BODIES: dict[str, dict[str, Any]] = {
    "hello": {"boot": 1, "generation": 0, "agent": "0.1.0"},
    "presence": {"online": True, "connection": 1},
    "state": {"boot": 1, "seq": 1, "generation": 0, "digest": SHA},
    "events": {"boot": 1, "seq": 1, "generation": 1, "execution": "e", "state": "STAGED"},
    "bench": {
        "boot": 1,
        "seq": 1,
        "generation": 1,
        "execution": "e",
        "candidate": SHA,
        "verdict": "pass",
        "metrics": [{"name": "token_ms", "unit": "ms", "candidate": 1.0, "verdict": "pass"}],
    },
    "heartbeat": {"boot": 1, "generation": 0},
}


def _message(channel: str, **changes: Any) -> Incoming:
    body = {**BODIES[channel], **changes}
    return Incoming(f"flotilla/v1/d/edge-1/up/{channel}", json.dumps(body).encode())


@pytest.mark.parametrize("channel", UP_CHANNELS)
def test_every_channel_has_a_message_that_is_read(channel: str) -> None:
    assert incoming.read(_message(channel)).device == "edge-1"


@pytest.mark.parametrize("channel", UP_CHANNELS)
def test_a_message_from_a_newer_agent_is_read(channel: str) -> None:
    incoming.read(_message(channel, v=2, something={"new": [1]}))


@pytest.mark.parametrize(
    ("channel", "changes"),
    [
        ("hello", {"boot": -1}),
        ("hello", {"boot": 2**63}),
        ("hello", {"digest": "x" * 64}),
        ("hello", {"agent": "a" * 33}),
        ("hello", {"agent": "a\x00"}),
        ("hello", {"blueprint": "b" * 200}),
        ("hello", {"hardware": {"cpu": "\x00"}}),
        ("hello", {"hardware": {"flags": ["f"] * 600}}),
        ("presence", {"connection": 2**64}),
        ("state", {"seq": -1}),
        ("state", {"last_known_good": "abc"}),
        ("state", {"state": "DANCING"}),
        ("events", {"execution": "e" * 37}),
        ("events", {"reason": "because"}),
        ("events", {"seq": "1"}),
        ("bench", {"candidate": "c"}),
        ("bench", {"metrics": [{**BODIES["bench"]["metrics"][0], "name": "n" * 33}]}),
        ("bench", {"metrics": [{**BODIES["bench"]["metrics"][0], "unit": "u" * 17}]}),
        ("bench", {"metrics": [{**BODIES["bench"]["metrics"][0], "n": 2**31}]}),
        ("bench", {"blocks": {"What is my balance?": [1.0]}}),
        ("bench", {"blocks": {f"s{'x' * i}": [1.0] for i in range(70)}}),
        ("heartbeat", {"uptime_s": -5}),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else value,
)
def test_what_no_column_could_hold_is_refused(channel: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as refusal:
        incoming.read(_message(channel, **changes))
    assert refusal.value.code == "protocol.malformed"


@pytest.mark.parametrize("channel", DOWN_CHANNELS)
def test_what_only_the_server_says_is_refused(channel: str) -> None:
    with pytest.raises(ProtocolError) as refusal:
        incoming.read(Incoming(f"flotilla/v1/d/edge-1/down/{channel}", b"{}"))
    assert refusal.value.code == "protocol.topic"


def test_a_message_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(ProtocolError) as refusal:
        incoming.read(Incoming("flotilla/v1/d/edge-1/up/hello", b" " * 70_000))
    assert refusal.value.code == "protocol.too_large"


@given(st.text(max_size=80), st.binary(max_size=200))
def test_any_topic_and_any_bytes_are_read_or_refused(topic: str, payload: bytes) -> None:
    refused: dict[str, int] = {}
    read = incoming.read_all([Incoming(topic, payload)], refused)
    assert len(read) + sum(refused.values()) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.sampled_from(UP_CHANNELS), st.data())
def test_any_value_in_any_field_is_read_or_refused(channel: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(BODIES[channel])))
    message = _message(channel, **{name: data.draw(JSON)})
    refused: dict[str, int] = {}
    read = incoming.read_all([message], refused)
    assert len(read) + sum(refused.values()) == 1


@given(st.sampled_from(UP_CHANNELS), st.integers(0, 400), st.integers(0, 255))
@example("hello", 0, 0)
def test_a_message_with_one_byte_changed_is_read_or_refused(
    channel: str, position: int, value: int
) -> None:
    sound = _message(channel)
    at = position % len(sound.payload)
    spoilt = sound.payload[:at] + bytes([value]) + sound.payload[at + 1 :]
    refused: dict[str, int] = {}
    read = incoming.read_all([Incoming(sound.topic, spoilt)], refused)
    assert len(read) + sum(refused.values()) == 1


def test_no_message_has_a_field_for_free_text() -> None:
    words = {"digest", "previous", "last_known_good", "candidate", "incumbent"}
    words |= set(incoming._LENGTHS)
    texts = {
        field.name
        for kind in incoming._KINDS.values()
        for field in msgspec.structs.fields(kind)
        if field.type is str
    }
    assert texts <= words
