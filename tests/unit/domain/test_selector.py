"""The filter grammar: what it reads, and how it refuses."""

from datetime import UTC, datetime, timedelta

import pytest

from control_plane.domain.device import DeviceFacts, DeviceId
from control_plane.domain.errors import InvalidError
from control_plane.domain.selector import Kind, matches, parse

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DEVICE = DeviceFacts(
    DeviceId("edge-1"),
    blueprint="x86-64-vnni",
    labels={"site": "vie"},
    hardware={"memory_mb": 4096, "flags": ["avx2"]},
    online=True,
    last_seen=NOW - timedelta(days=8),
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        'id : "edge-*"',
        'id : "edge-?"',
        'labels.site in ("fra", "vie")',
        'labels.site not in ("fra")',
        'labels.rack != "r1"',
        'not labels.rack : "*"',
        "labels.site exists and not labels.rack exists",
        "last_seen exists and not version exists",
        'health = "healthy"',
        'health in ("healthy", "offline")',
        'last_seen < ago("7d")',
        "hardware.memory_mb >= 4096 and online = true",
        'hardware.flags = "avx2"',
        'id = "other" or blueprint = "x86-64-vnni"',
        'not (id = "other" or id = "third") and id = "edge-1"',
    ],
)
def test_these_match_the_device(text: str) -> None:
    assert matches(parse(text), DEVICE, now=NOW)


@pytest.mark.parametrize(
    "text",
    [
        'id : "EDGE-*"',
        'labels.rack = "r1"',
        'last_seen > ago("7d")',
        "hardware.cores > 0",
        'hardware.flags = "avx"',
        "online = false",
        'version = "1.0.0"',
        "blueprint exists and hardware.runtimes exists",
        'health != "healthy"',
    ],
)
def test_these_do_not_match_the_device(text: str) -> None:
    assert not matches(parse(text), DEVICE, now=NOW)


def test_and_binds_tighter_than_or() -> None:
    assert matches(parse('id = "edge-1" or id = "x" and id = "y"'), DEVICE, now=NOW)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("online = true or", "column 17: ends too early"),
        ("color exists", "column 1: color is no field"),
        ("exists labels.site", "column 1: unexpected 'exists'"),
        ("color = 1", "column 1: color is no field"),
        ('id = "a" id', "column 10: unexpected 'id'"),
        ('labels.site < "b"', "column 1: labels.site has no order"),
        ("id = 5", "column 1: id is compared with a text"),
        ("generation = true", "column 1: generation is compared with a number"),
        ('last_seen < ago("7 days")', "column 17: ago() takes a duration"),
        ('last_seen = ago("7d")', "column 1: last_seen is a time"),
        ('id = "open', "column 6: unexpected"),
        ('id = "nul\x00"', "column 6: unexpected"),
        ("(" * 80 + 'id = "a"' + ")" * 80, "more than 64 parentheses"),
        ('id = "' + "a" * 5000 + '"', "the limit is 4096"),
    ],
)
def test_a_bad_selector_names_column_and_cure(text: str, message: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse(text, field="spec.selector")
    assert message in caught.value.message
    assert caught.value.field == "spec.selector"


def test_other_lists_bring_their_own_fields() -> None:
    assert parse('state = "HALTED"', {"state": Kind.TEXT}) is not None
    with pytest.raises(InvalidError, match="blueprint is no field; known are state"):
        parse('blueprint = "x"', {"state": Kind.TEXT})
