"""rollout: steer one, follow it, ask why."""

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane.cli.exits import CliError, Exit, UnreachableError
from control_plane.cli.get import KINDS
from control_plane.cli.options import Output, Why, seconds
from control_plane.cli.output import Form, say, show, table
from control_plane.cli.simulate import simulate

if TYPE_CHECKING:
    from control_plane.cli.client import Client

app = typer.Typer(help="Rollouts: steer, follow, explain.", no_args_is_help=True)
app.command()(simulate)

Name = Annotated[str, typer.Argument(help="The rollout's name.")]
Timeout = Annotated[str, typer.Option("--timeout", help="Give up after: 90s, 10m, 2h; 0: never.")]

# What each state means to a script that waits; states that are not here go on by themselves.
OUTCOMES = {
    "SUCCEEDED": Exit.OK,
    "REVERTED": Exit.FAILED,
    "ABORTED": Exit.FAILED,
    "HALTED": Exit.FAILED,
    "PAUSED": Exit.WAITS,
    "AWAITING_APPROVAL": Exit.WAITS,
    "DRAFT": Exit.WAITS,
}
NEXT_STEP = {
    "HALTED": "a gate stopped it: `flotilla rollout explain {name}` says why",
    "PAUSED": "it is paused: `flotilla rollout resume {name}`",
    "AWAITING_APPROVAL": "it waits for approval: `flotilla rollout approve {name}`, or deny",
    "DRAFT": "it has not begun: `flotilla rollout start {name}`",
}
POLL_S = 1.0


@app.command()
def start(name: Name, reason: Why = "") -> None:
    """Begin: builds what is missing, then opens the first wave."""
    _steer(name, "start", {"reason": reason})


@app.command()
def pause(name: Name, reason: Why = "") -> None:
    """Stop offering; what was offered and not begun is withdrawn."""
    _steer(name, "pause", {"reason": reason})


@app.command()
def resume(name: Name, reason: Why = "") -> None:
    """Go on after a pause or a halt; failures so far are acknowledged."""
    _steer(name, "resume", {"reason": reason})


@app.command()
def approve(name: Name, reason: Why = "") -> None:
    """Let a rollout or wave begin that waits for a person."""
    _steer(name, "approve", {"reason": reason})


@app.command()
def deny(
    name: Name,
    reason: Annotated[
        str, typer.Option("--reason", help="Why not; whoever planned it will read it.")
    ],
) -> None:
    """Say no to the wave that waits: the rollout ends, devices keep what they run."""
    _steer(name, "deny", {"reason": reason})


@app.command()
def promote(name: Name, reason: Why = "") -> None:
    """Open the next wave now, without waiting for the gate."""
    _steer(name, "promote", {"reason": reason})


@app.command()
def revert(name: Name, reason: Why = "") -> None:
    """Take every updated device back to what it ran before."""
    _steer(name, "revert", {"reason": reason})


@app.command()
def abort(
    name: Name,
    mode: Annotated[
        str, typer.Option(help="keep: leave updated devices so; revert: take them back.")
    ] = "keep",
    reason: Why = "",
) -> None:
    """Give a rollout up."""
    if mode not in ("keep", "revert"):
        raise CliError(f"--mode {mode!r}: keep or revert", Exit.USAGE)
    _steer(name, "abort", {"mode": mode, "reason": reason})


@app.command()
def retry(
    name: Name,
    new_name: Annotated[str, typer.Option("--name", help="Of the new one; or NAME-retry-1.")] = "",
    include_rejected: Annotated[
        bool, typer.Option("--include-rejected", help="Also devices that refused it.")
    ] = False,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    reason: Why = "",
) -> None:
    """Make a new rollout, same policy, for the devices that failed in one that has ended."""
    from control_plane.cli.client import Client

    body = {"name": new_name, "include_rejected": include_rejected, "reason": reason}
    with Client() as client:
        made = client.post(f"{_path(name)}:retry", body)
        devices = sum(wave["total"] for wave in made["waves"])
        say(f"{made['name']} retries {devices} devices of {name}")
        if start:
            made = client.post(f"{_path(made['name'])}:start", {"reason": reason})
    print(f"{made['name']}: {made['state']}")


@app.command()
def status(name: Name, output: Output = Form.TABLE) -> None:
    """Show where it is; the exit code tells success, failure and waiting for a person."""
    from control_plane.cli.client import Client

    with Client() as client:
        found = client.get(_path(name))
    if output is Form.TABLE:
        _print_status(found)
    else:
        show(found, output, KINDS["rollouts"].columns, KINDS["rollouts"].wide)
    _end(found)


@app.command()
def wait(name: Name, timeout: Timeout = "0") -> None:
    """Wait until it ends or needs a person; exit codes as for status, 124 when time is up."""
    found: dict[str, Any] = {}
    for found in _follow(name, timeout):
        if found["state"] in OUTCOMES:
            break
    print(f"{name}: {found['state']}")
    _end(found)


@app.command()
def watch(name: Name, timeout: Timeout = "0") -> None:
    """Follow it live until it ends or needs a person."""
    found: dict[str, Any] = {}
    if sys.stdout.isatty():
        found = _watch_live(name, timeout)
    else:
        before = ""
        for found in _follow(name, timeout):
            line = _line(found)
            if line != before:
                print(line, flush=True)
            before = line
            if found["state"] in OUTCOMES:
                break
    _end(found)


@app.command()
def explain(name: Name, output: Output = Form.TABLE) -> None:
    """Say why it is where it is, with the numbers."""
    from control_plane.cli.client import Client

    with Client() as client:
        found = client.get(f"{_path(name)}/explain")
    if output in (Form.JSON, Form.YAML):
        show(found, output, [])
    else:
        print(found["text"])


def _path(name: str) -> str:
    return KINDS["rollouts"].address(name)


def _steer(name: str, verb: str, body: dict[str, str]) -> None:
    from control_plane.cli.client import Client

    with Client() as client:
        after = client.post(f"{_path(name)}:{verb}", body)
    print(f"{name}: {after['state']}")
    if after["state_reason"]:
        say(after["state_reason"])
    asked = after.get("approval")
    if asked:
        whom = f" of {', '.join(asked['of'])}" if asked["of"] else ""
        by = ", ".join(asked["by"]) or "nobody yet"
        say(f"wave {asked['wave']} needs {asked['left']} more approvals{whom}; given by {by}")


def _follow(name: str, timeout: str) -> Iterator[dict[str, Any]]:
    """Yield the rollout again and again; a control plane that restarts meanwhile is waited for."""
    from control_plane.cli.client import Client

    patience = seconds(timeout, "--timeout")
    ends = time.monotonic() + patience if patience else float("inf")
    with Client() as client:
        found = client.get(_path(name))
        while True:
            yield found
            if time.monotonic() >= ends:
                say(f"flotilla: {name} is still {found['state']} after {timeout}")
                raise typer.Exit(Exit.TIMED_OUT)
            time.sleep(POLL_S)
            found = _again(client, name, found, ends)


def _again(client: "Client", name: str, before: dict[str, Any], ends: float) -> dict[str, Any]:
    lost = time.monotonic()
    while True:
        try:
            found: dict[str, Any] = client.get(_path(name))
        except UnreachableError:
            now = time.monotonic()
            if now >= ends:
                return before
            if now - lost > LOST_S:
                raise
            time.sleep(POLL_S)
        else:
            return found


LOST_S = 60.0


def _watch_live(name: str, timeout: str) -> dict[str, Any]:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    found: dict[str, Any] = {}
    with Live(refresh_per_second=4) as live:
        for found in _follow(name, timeout):
            live.update(Group(Text(_heading(found), style="bold"), Text(_waves(found))))
            if found["state"] in OUTCOMES:
                break
    return found


def _end(found: dict[str, Any]) -> None:
    """End the command with the exit code of the rollout's state."""
    hint = NEXT_STEP.get(found["state"], "")
    if hint:
        say(hint.format(name=found["name"]))
    raise typer.Exit(OUTCOMES.get(found["state"], Exit.OK))


def _print_status(found: dict[str, Any]) -> None:
    print(_heading(found))
    if found.get("retries"):
        say(f"retries the failed devices of {found['retries']}")
    print(_waves(found), end="")
    for misfit in found.get("misfits", []):
        say(f"left out: {misfit.get('device', misfit.get('blueprint', ''))}: {misfit['reason']}")


def _heading(found: dict[str, Any]) -> str:
    why = f": {found['state_reason']}" if found["state_reason"] else ""
    return f"{found['name']}: {found['model']} {found['version']}: {found['state']}{why}"


def _waves(found: dict[str, Any]) -> str:
    return table(
        found["waves"],
        [("WAVE", "name"), ("STATE", "state"), ("DEVICES", "total"), ("COUNTS", "counts")],
    )


def _line(found: dict[str, Any]) -> str:
    waves = " ".join(
        f"{wave['name']}[{','.join(f'{k}={v}' for k, v in sorted(wave['counts'].items()))}]"
        for wave in found["waves"]
    )
    return f"{found['state']} {waves}"
