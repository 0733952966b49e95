"""The gateway's MQTT: what it writes it reads, however the stream is cut, and nonsense ends it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.benchmarks import packets
from tests.benchmarks.packets import PacketError, Publish, Reader, Reply

PUBLISHES = st.builds(
    Publish,
    topic=st.text(min_size=1, max_size=40).map(str.encode),
    payload=st.binary(max_size=300) | st.binary(min_size=16_300, max_size=16_500),
    mid=st.integers(0, packets.LAST_ID),
    retain=st.booleans(),
)


def _written(one: Publish) -> bytes:
    return packets.publish(one.topic.decode(), one.payload, mid=one.mid, retain=one.retain)


@settings(max_examples=50)
@given(st.lists(PUBLISHES, max_size=5), st.data())
def test_a_stream_cut_anywhere_is_read_as_it_was_written(
    said: list[Publish], data: st.DataObject
) -> None:
    stream = b"".join(map(_written, said)) + packets.pubacks([7, 65_535])
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6).map(sorted))
    reader = Reader()
    found: list[Publish | Reply] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found[: len(said)] == said
    assert [one.mid for one in found[len(said) :]] == [7, 65_535]


def test_a_stream_byte_by_byte() -> None:
    stream = packets.publish("t", b"x" * 200, mid=3) + packets.PING
    reader = Reader()
    found = [one for byte in stream for one in reader.feed(bytes((byte,)))]
    assert found == [Publish(b"t", b"x" * 200, 3, retain=False), Reply(0xC0, b"")]


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    try:
        found = Reader().feed(data)
    except PacketError:
        return
    assert len(found) <= len(data) // 2


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x30\xff\xff\xff\xff\x01", id="a length of five bytes"),
        pytest.param(b"\x30\xff\xff\xff\x7f", id="256 MB"),
        pytest.param(b"\x30\x02\x00\x05", id="a topic longer than its packet"),
        pytest.param(b"\x32\x03\x00\x01t", id="no message id"),
    ],
)
def test_what_is_not_mqtt_ends_the_connection(data: bytes) -> None:
    with pytest.raises(PacketError):
        Reader().feed(data)


def test_connect_keeps_the_session_and_says_who() -> None:
    assert packets.connect("gw", 60) == b"\x10\x0e\x00\x04MQTT\x04\x00\x00\x3c\x00\x02gw"
    named = packets.connect("gw", 60, "user", "secret")
    assert named[9] == 0xC0
    assert named.endswith(b"\x00\x02gw\x00\x04user\x00\x06secret")


def test_subscribe_asks_for_qos_1() -> None:
    assert packets.subscribe(1, "a/#") == b"\x82\x08\x00\x01\x00\x03a/#\x01"
