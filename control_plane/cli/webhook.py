"""webhook: who is told of decisions, and what became of what was sent."""

from typing import Annotated

import typer

from control_plane.cli.get import Kind, list_all
from control_plane.cli.options import Most, Output, Why
from control_plane.cli.output import Form, say

app = typer.Typer(help="Webhooks: tell other systems of decisions.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="The webhook's id.")]

HOOKS = Kind(
    "/api/v1/webhooks",
    [
        ("WEBHOOK", "id"),
        ("URL", "url"),
        ("EVENTS", lambda hook: ", ".join(hook["events"]) or "all but the frequent"),
        ("WAITING", "waiting"),
        ("DISABLED", "disabled_why"),
    ],
    [("CREATED", "created_at"), ("BY", "created_by")],
)
DELIVERIES = Kind(
    "/api/v1/webhooks",
    [
        ("AT", "created_at"),
        ("TYPE", "type"),
        ("ATTEMPT", "attempt"),
        ("ACCEPTED", "accepted_at"),
        ("NEXT", "next_at"),
        ("ANSWER", "answer"),
    ],
    [("EVENT", "event")],
)


@app.command()
def add(
    url: Annotated[str, typer.Argument(help="Where to send events: https://HOST/PATH.")],
    event: Annotated[
        list[str] | None,
        typer.Option("--event", help="Only this type, such as dev.flotilla.rollout.halt."),
    ] = None,
) -> None:
    """Make a webhook; the secret that signs its events is printed once and shown nowhere.

    Example: flotilla webhook add https://ops.example/hook --event dev.flotilla.rollout.halt
    """
    from control_plane.cli.client import Client

    with Client() as client:
        made = client.post("/api/v1/webhooks", {"url": url, "events": event or []})
    say(f"webhook {made['webhook']['id']}; its secret:")
    print(made["secret"])


@app.command("list")
def list_(output: Output = Form.TABLE) -> None:
    """List webhooks."""
    list_all(HOOKS, output)


@app.command()
def deliveries(webhook: Id, output: Output = Form.TABLE, limit: Most = 50) -> None:
    """List what was sent to a webhook and what waits, newest first."""
    list_all(DELIVERIES, output, limit=limit, path=f"{HOOKS.address(webhook)}/deliveries")


@app.command()
def test(webhook: Id) -> None:
    """Send an event that says only that it is a test."""
    _act(webhook, "test", {})
    say(f"sent; `flotilla webhook deliveries {webhook}` shows the answer")


@app.command()
def delete(webhook: Id, reason: Why = "") -> None:
    """Forget a webhook and what waits for it."""
    _act(webhook, "delete", {"reason": reason})
    say(f"webhook {webhook} is gone")


def _act(webhook: str, verb: str, body: dict[str, object]) -> None:
    from control_plane.cli.client import Client

    with Client() as client:
        client.post(f"{HOOKS.address(webhook)}:{verb}", body)
