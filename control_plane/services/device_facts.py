"""Facts about a device from outside, checked before they are stored: labels, hardware."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from agent.protocol.messages import Hardware
from control_plane.domain.errors import InvalidError

MAX_LABELS = 64
MAX_TEXT = 256
MAX_WORDS = 512
MAX_NUMBER = 2**53
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,62}")
_VALUE = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
# A control character (PostgreSQL stores no NUL) would make every later query fail on this row.
_PLAIN = re.compile(r"[^\x00-\x1f\x7f]*")


def check_labels(labels: Mapping[str, str | None], *, field: str = "labels") -> None:
    """Raise `InvalidError`, naming the label, unless every key and value is acceptable."""
    if len(labels) > MAX_LABELS:
        raise InvalidError(f"{len(labels)} labels; the limit is {MAX_LABELS}", field=field)
    for key, value in labels.items():
        where = f"{field}.{key[:80]}"
        if not _KEY.fullmatch(key):
            raise InvalidError(
                "a key is 1 to 63 letters, digits, '_', '.', '/' or '-', and starts with a letter"
                " or digit",
                field=where,
            )
        if value is not None and not _VALUE.fullmatch(value):
            raise InvalidError("a value is 1 to 128 printable characters", field=where)


def checked_hardware(hardware: Hardware) -> dict[str, Any]:
    """Return what is stored of a device's hardware; `InvalidError` names the field."""
    facts: dict[str, Any] = msgspec.to_builtins(hardware)
    for name, value in facts.items():
        if not _acceptable(value):
            raise InvalidError(
                f"expected a number up to {MAX_NUMBER}, a text of up to {MAX_TEXT} printable"
                f" characters or up to {MAX_WORDS} of those",
                field=f"hardware.{name}",
            )
    return facts


def _acceptable(value: Any) -> bool:
    if isinstance(value, int):
        return 0 <= value <= MAX_NUMBER
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and _PLAIN.fullmatch(value) is not None
    return len(value) <= MAX_WORDS and all(_acceptable(word) for word in value)
