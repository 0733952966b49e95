"""Topics: built and parsed here and nowhere else.

Everything lives under ``flotilla/v1/d/{device}/``. A device writes only ``up/#`` and reads only
``down/#``; its id is also its certificate name and its MQTT client id.

>>> desired("edge-7")
'flotilla/v1/d/edge-7/down/desired'
>>> parse("flotilla/v1/d/edge-7/up/bench")
Topic(device='edge-7', direction='up', channel='bench')
"""

import re
from typing import Literal, NamedTuple, NewType

from agent.protocol.errors import UnknownTopicError

DeviceId = NewType("DeviceId", str)

PREFIX = "flotilla/v1/d"
UP_CHANNELS = ("hello", "presence", "state", "events", "bench", "heartbeat")
DOWN_CHANNELS = ("desired", "ack", "cmd")
# MQTT wildcards, slashes and anything a file system or a certificate could read as more than a
# name are out: a device named '#' or '../x' must not exist.
DEVICE_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class Topic(NamedTuple):
    """A parsed topic."""

    device: DeviceId
    direction: Literal["up", "down"]
    channel: str


def device_id(text: str) -> DeviceId:
    """Return `text` as a device id; `UnknownTopicError` if it is not one."""
    if not DEVICE_ID.fullmatch(text):
        raise UnknownTopicError(
            f"device id {text[:80]!r}: use 1 to 63 of a-z, 0-9 and '-', no '-' at the ends"
        )
    return DeviceId(text)


def up(device: DeviceId, channel: str) -> str:
    """Return the topic on which `device` writes `channel`."""
    return f"{PREFIX}/{device}/up/{channel}"


def down(device: DeviceId, channel: str) -> str:
    """Return the topic on which `device` reads `channel`."""
    return f"{PREFIX}/{device}/down/{channel}"


def desired(device: DeviceId) -> str:
    """Return the retained topic of a device's desired state."""
    return down(device, "desired")


def all_down(device: DeviceId) -> str:
    """Return the filter that a device subscribes."""
    return f"{PREFIX}/{device}/down/#"


def all_up(share_group: str = "") -> str:
    """Return the filter that a gateway subscribes.

    Args:
        share_group: name of the shared-subscription group; must be secret, since a broker may
            let a device that knows it join and swallow reports.
    """
    everything = f"{PREFIX}/+/up/#"
    return f"$share/{share_group}/{everything}" if share_group else everything


def parse(topic: str) -> Topic:
    """Parse a topic; `UnknownTopicError` if it is outside the contract."""
    parts = topic.split("/")
    if len(parts) != 6 or "/".join(parts[:3]) != PREFIX:  # noqa: PLR2004 - three of prefix, id, direction, channel
        raise UnknownTopicError(f"topic {topic[:120]!r} is not under {PREFIX}/<device>/")
    _, _, _, name, direction, channel = parts
    if direction == "up" and channel in UP_CHANNELS:
        return Topic(device_id(name), "up", channel)
    if direction == "down" and channel in DOWN_CHANNELS:
        return Topic(device_id(name), "down", channel)
    raise UnknownTopicError(f"topic {topic[:120]!r} has no channel {direction}/{channel}")
