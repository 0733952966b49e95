"""Whether an ONNX file is whole: a look at its outermost fields, before gigabytes are sent."""

from pathlib import Path
from typing import BinaryIO

from control_plane.cli.exits import CliError, Exit

# Protocol Buffers, "Encoding": bytes of a value by its wire type; the other two say it themselves.
_FIXED = {1: 8, 5: 4}
_VARINT, _BYTES = 0, 2
_MAX_VARINT = 10
_MORE = 128


def check_whole(place: Path) -> None:
    """Raise `CliError` unless the file ends where its last field ends.

    The control plane inspects the graph itself; this finds a broken download or a full disk
    without an upload that would be refused.
    """
    size = place.stat().st_size
    with place.open("rb") as file:
        while (at := file.tell()) < size:
            end = _field_end(file)
            if end is None or end > size:
                missing = f": the field at byte {at} ends {end - size} bytes later" if end else ""
                raise CliError(
                    f"{place}: truncated or damaged after {size} bytes{missing}",
                    Exit.USAGE,
                    hint="export or copy it again, and push the whole file",
                )
            file.seek(end)


def _field_end(file: BinaryIO) -> int | None:
    """Return where the field that begins here ends; None where there is no field."""
    tag = _varint(file)
    kind = None if tag is None else tag & 7
    if kind in _FIXED:
        return file.tell() + _FIXED[kind]
    if kind not in {_VARINT, _BYTES}:
        return None
    value = _varint(file)
    if value is None:
        return None
    return file.tell() + (value if kind == _BYTES else 0)


def _varint(file: BinaryIO) -> int | None:
    value = 0
    for shift in range(0, 7 * _MAX_VARINT, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 127) << shift
        if byte[0] < _MORE:
            return value
    return None
