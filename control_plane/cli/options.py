"""Options that several commands share, so that they are called the same everywhere."""

import re
from typing import Annotated

import typer

from control_plane.cli.exits import CliError, Exit
from control_plane.cli.output import Form

Output = Annotated[Form, typer.Option("-o", "--output", help="How to print it.")]
FilterBy = Annotated[
    str, typer.Option("--filter", help='Such as: labels.site = "vie" and online = true')
]
SortBy = Annotated[
    str,
    typer.Option(
        "--sort",
        help="name, last_seen, version, blueprint or health; -last_seen: the other way.",
    ),
]
Most = Annotated[int, typer.Option("--limit", min=0, help="Most items; 0: all.")]
Why = Annotated[str, typer.Option("--reason", help="Why; the audit log keeps it.")]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)")
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str, option: str) -> float:
    """Read a duration such as 90s, 5m or 2h; a plain number is seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise CliError(f"{option} {text!r}: write it as 90s, 5m or 2h", Exit.USAGE)
    return float(match[1]) * _SECONDS[match[2]]


def labels(pairs: list[str], option: str) -> dict[str, str | None]:
    """Read labels: key=value sets one, key- takes it away."""
    found: dict[str, str | None] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if equals and key:
            found[key] = value
        elif pair.endswith("-") and len(pair) > 1:
            found[pair[:-1]] = None
        else:
            wanted = "write key=value, or key- to take it away"
            raise CliError(f"{option} {pair!r}: {wanted}", Exit.USAGE)
    return found
