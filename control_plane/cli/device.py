"""device: tokens to enrol with, what a device runs, its labels, its history, its quarantine."""

from typing import Annotated

import typer

from control_plane.cli.get import KINDS, Kind, list_all, show_one
from control_plane.cli.options import FilterBy, Most, Output, SortBy, Why, labels, seconds
from control_plane.cli.output import Form, say

app = typer.Typer(help="Devices: enrol, look at, label, shut out.", no_args_is_help=True)

Device = Annotated[str, typer.Argument(help="The device's id.")]

HISTORY = Kind(
    "/api/v1/devices",
    [
        ("AT", "at"),
        ("KIND", "kind"),
        ("VERSION", "version"),
        ("WHY", "why"),
        ("EXECUTION", "execution"),
    ],
    [("DIGEST", "digest")],
)


@app.command()
def token(
    label: Annotated[
        list[str] | None, typer.Option("--label", help="key=value, for each device that enrols.")
    ] = None,
    uses: Annotated[int, typer.Option(min=1, help="For how many devices.")] = 1,
    ttl: Annotated[str, typer.Option(help="How long it is good: 30m, 2h, 7d.")] = "1h",
) -> None:
    """Make an enrolment token; it is printed once and kept nowhere."""
    from control_plane.cli.client import Client

    body = {
        "labels": {k: v for k, v in labels(label or [], "--label").items() if v is not None},
        "uses": uses,
        "ttl_s": int(seconds(ttl, "--ttl")),
    }
    with Client() as client:
        print(client.post("/api/v1/enrollment-tokens", body)["token"])


@app.command("list")
def list_(
    output: Output = Form.TABLE,
    filter: FilterBy = "",  # noqa: A002 - the option's name
    sort: SortBy = "",
    limit: Most = 0,
) -> None:
    """List devices."""
    list_all(KINDS["devices"], output, filter_by=filter, sort=sort, limit=limit)


@app.command()
def summary(output: Output = Form.TABLE) -> None:
    """Show the fleet in numbers: how many devices run, are and report what."""
    from control_plane.cli.client import Client
    from control_plane.cli.output import show as print_it

    with Client() as client:
        found = client.get(f"{KINDS['devices'].path}:summary")
    if output in (Form.JSON, Form.YAML):
        print_it(found, output, [])
        return
    lines = []
    for name, counted in found.items():
        of = name.removeprefix("by_")
        counts = (
            counted if isinstance(counted, dict) else {"all" if of == "total" else "yes": counted}
        )
        lines += [{"of": of, "value": value or "none", "n": n} for value, n in counts.items()]
    print_it(lines, output, [("OF", "of"), ("VALUE", "value"), ("DEVICES", "n")])


@app.command()
def show(device: Device, output: Output = Form.WIDE) -> None:
    """Show one device."""
    show_one(KINDS["devices"], device, output)


@app.command()
def history(device: Device, output: Output = Form.TABLE, limit: Most = 50) -> None:
    """Show what a device ran and went through, newest first."""
    list_all(HISTORY, output, limit=limit, path=f"{KINDS['devices'].address(device)}/history")


@app.command()
def label(
    device: Device,
    changes: Annotated[list[str], typer.Argument(help="key=value to set, key- to take away.")],
    reason: Why = "",
) -> None:
    """Set labels of a device, or take them away."""
    _act(device, "label", {"labels": labels(changes, "label"), "reason": reason})


@app.command()
def quarantine(
    device: Device,
    reason: Why = "",
    undo: Annotated[bool, typer.Option("--undo", help="Let it in again.")] = False,
) -> None:
    """Shut a device out: it is offered nothing and heard no more, until `--undo`."""
    _act(device, "unquarantine" if undo else "quarantine", {"reason": reason})


def _act(device: str, verb: str, body: dict[str, object]) -> None:
    from control_plane.cli.client import Client
    from control_plane.cli.output import show as print_it

    with Client() as client:
        after = client.post(f"{KINDS['devices'].address(device)}:{verb}", body)
    say(f"device {device}: {verb} done")
    print_it(after, Form.TABLE, [("DEVICE", "id"), ("STATE", "state"), ("LABELS", "labels")])
