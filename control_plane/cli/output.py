"""How answers are printed: data on stdout, everything else on stderr."""

import json
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any


class Form(StrEnum):
    """What -o takes."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


Cell = Callable[[dict[str, Any]], Any]
Column = tuple[str, str | Cell]


def say(text: str) -> None:
    """Tell a person what happens; never data."""
    print(text, file=sys.stderr, flush=True)


def show(data: Any, form: Form, columns: Sequence[Column], wide: Sequence[Column] = ()) -> None:
    """Print one thing or a list of things.

    Args:
        data: what the API answered.
        form: table, wide, json, yaml or name.
        columns: heading and field (dotted), or heading and a function of the item.
        wide: further columns of the wide table.
    """
    if form is Form.JSON:
        print(json.dumps(data, indent=2, ensure_ascii=False))
    elif form is Form.YAML:
        import yaml

        print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")
    else:
        rows = data if isinstance(data, list) else [data]
        if form is Form.NAME:
            for row in rows:
                print(_text(_cell(row, columns[0][1])))
        else:
            shown = [*columns, *wide] if form is Form.WIDE else columns
            print(table(rows, shown), end="")


def table(rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> str:
    """Return aligned columns, never cut: what one pipes must be whole."""
    lines = [[heading for heading, _ in columns]]
    lines += [[_text(_cell(row, key)) for _, key in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def size(count: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":  # noqa: PLR2004 - what a KiB is
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def _cell(row: dict[str, Any], key: str | Cell) -> Any:
    if callable(key):
        return key(row)
    found: Any = row
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ",".join(f"{k}={_text(v)}" for k, v in value.items()) or "-"
    if isinstance(value, list):
        return ",".join(_text(v) for v in value) or "-"
    # A device or a file may have named itself: no control characters reach the terminal.
    return "".join(c if c.isprintable() else "?" for c in str(value))
