"""rollout simulate: a recorded rollout under another policy, beside what really happened."""

from typing import Annotated, Any

import typer

from control_plane.cli.exits import CliError, Exit
from control_plane.cli.get import KINDS
from control_plane.cli.options import Output
from control_plane.cli.output import Form, say, show, table

MOST_NAMED = 10
_QUIET = frozenset({"hold"})


def simulate(
    name: Annotated[str, typer.Argument(help="A rollout that was started.")],
    file: Annotated[
        str, typer.Option("-f", "--file", help="The policy: a rollout's YAML, or parts of a spec.")
    ] = "",
    unknown: Annotated[
        str, typer.Option(help="Devices without an answer: succeed, fail, or rate (as seen).")
    ] = "rate",
    seed: Annotated[int, typer.Option(min=0, help="For what is drawn at random.")] = 0,
    output: Output = Form.TABLE,
) -> None:
    """Replay a recorded rollout under another policy; without -f, under its own."""
    from control_plane.cli.client import Client

    if unknown not in ("succeed", "fail", "rate"):
        raise CliError(f"--unknown {unknown!r}: succeed, fail or rate", Exit.USAGE)
    body = {"policy": _policy(file) if file else {}, "unknown": unknown, "seed": seed}
    with Client() as client:
        found = client.post(f"{KINDS['rollouts'].address(name)}:simulate", body)
    if output in (Form.JSON, Form.YAML):
        show(found, output, [])
        return
    _print(found)


def _policy(file: str) -> dict[str, Any]:
    import yaml

    from control_plane.cli.documents import text_of

    try:
        found = yaml.safe_load(text_of(file))
    except yaml.YAMLError as error:
        raise CliError(f"{file}: {error}", Exit.USAGE) from error
    if not isinstance(found, dict):
        raise CliError(f"{file}: a policy is a mapping, such as gates: or waves:", Exit.USAGE)
    return found


def _print(found: dict[str, Any]) -> None:
    before, after = found["recorded"], found["replayed"]
    rows = [
        {"what": what, "recorded": said(before), "replayed": said(after)}
        for what, said in (
            ("state", lambda told: told["state"]),
            ("halted after", lambda told: _seconds(told["halted_at_s"])),
            ("ended after", lambda told: _seconds(told["duration_s"])),
            ("offered", lambda told: told["offered"]),
            ("ran it", lambda told: len(told["ran"])),
            ("outcomes", lambda told: told["outcomes"]),
        )
    ]
    columns = [("", "what"), ("RECORDED", "recorded"), ("REPLAYED", "replayed")]
    print(table(rows, [(head, key) for head, key in columns]), end="")
    if after["halted_why"]:
        print(f"it would have halted: {after['halted_why']}")
    for one in after["decisions"]:
        if one["kind"] not in _QUIET:
            why = f": {one['why']}" if one["why"] else ""
            print(f"{_seconds(one['at_s']):>10}  {one['kind']} (wave {one['wave'] + 1}){why}")
    _named("would have been spared", found["spared"])
    _named("would have run it as well", found["newly_exposed"])
    say(
        f"{found['without_answer']} of {found['devices']} devices have no answer in the record; "
        f"{len(found['drawn'])} of them were offered it here and answered as drawn "
        f"(--unknown {found['unknown']}, seed {found['seed']})"
    )
    for note in found["notes"]:
        say(f"note: {note}")


def _named(what: str, devices: list[str]) -> None:
    if devices:
        more = f" and {len(devices) - MOST_NAMED} more" if len(devices) > MOST_NAMED else ""
        print(f"{len(devices)} {what}: {', '.join(devices[:MOST_NAMED])}{more}")


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
