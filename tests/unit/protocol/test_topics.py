import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol import topics
from agent.protocol.errors import UnknownTopicError

devices = st.from_regex(topics.DEVICE_ID, fullmatch=True).map(topics.device_id)


@given(devices, st.sampled_from(topics.UP_CHANNELS))
def test_what_a_device_writes_parses_back(device: topics.DeviceId, channel: str) -> None:
    assert topics.parse(topics.up(device, channel)) == (device, "up", channel)


@given(devices, st.sampled_from(topics.DOWN_CHANNELS))
def test_what_a_device_reads_parses_back(device: topics.DeviceId, channel: str) -> None:
    assert topics.parse(topics.down(device, channel)) == (device, "down", channel)


def test_the_topics_are_those_of_the_contract() -> None:
    device = topics.device_id("edge-7")
    assert topics.desired(device) == "flotilla/v1/d/edge-7/down/desired"
    assert topics.all_down(device) == "flotilla/v1/d/edge-7/down/#"
    assert topics.all_up() == "flotilla/v1/d/+/up/#"
    assert topics.all_up("secret") == "$share/secret/flotilla/v1/d/+/up/#"


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "A", "a/b", "+", "#", "..", "a.b", "a b", "a\n", "ä", "a" * 64, "$share"],
)
def test_a_device_may_not_have_a_name_that_means_more_than_a_name(name: str) -> None:
    with pytest.raises(UnknownTopicError):
        topics.device_id(name)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "flotilla/v1/d/edge-7",
        "flotilla/v2/d/edge-7/up/hello",
        "flotilla/v1/d/edge-7/up/desired",
        "flotilla/v1/d/edge-7/down/hello",
        "flotilla/v1/d/edge-7/up/hello/more",
        "flotilla/v1/d/+/up/hello",
        "/flotilla/v1/d/edge-7/up/hello",
        "$share/g/flotilla/v1/d/edge-7/up/hello",
    ],
)
def test_a_topic_outside_the_contract_is_refused(topic: str) -> None:
    with pytest.raises(UnknownTopicError):
        topics.parse(topic)


@given(st.text(max_size=80))
def test_whatever_topic_comes_it_parses_back_or_is_refused(text: str) -> None:
    try:
        read = topics.parse(text)
    except UnknownTopicError:
        return
    assert f"{topics.PREFIX}/{read.device}/{read.direction}/{read.channel}" == text
