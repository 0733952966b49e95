"""simulate-fleet: any number of simulated devices, to plan with, on the real wire."""

import signal
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane.cli.exits import CliError, Exit
from control_plane.cli.options import seconds
from control_plane.cli.output import Form, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from agent.protocol.messages import BundleRef
    from control_plane.cli.client import Client
    from control_plane.local.fleet_simulator.run import FleetRun
    from control_plane.local.fleet_simulator.simulation import Simulation

TOKEN_S = 86_400
EVERY = 500
"""Devices between two words about enrolment."""


def add_to(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command("simulate-fleet")(simulate_fleet)


def simulate_fleet(
    *,
    devices: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many devices.")],
    profile: Annotated[Path, typer.Option(help="A FleetProfile document (examples/fleets).")],
    data: Annotated[
        Path | None, typer.Option(help="Where identities are kept; default: under FLOTILLA_DATA.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed, the same fleet.")] = 1,
    duration: Annotated[
        str, typer.Option("--for", help="How long: 90s, 5m, 2h; default: until Ctrl-C.")
    ] = "",
    record: Annotated[
        Path | None, typer.Option(help="Write every happening there, a JSON line each.")
    ] = None,
    enroll_only: Annotated[
        bool, typer.Option("--enroll-only", help="Enrol, and connect another time.")
    ] = False,
    output: Annotated[
        Form, typer.Option("-o", "--output", help="How to print the summary.")
    ] = Form.TABLE,
) -> None:
    """Simulate a fleet against this control plane: real enrolment, real MQTT, no real models."""
    from control_plane.cli.client import Client
    from control_plane.cli.context import data_folder
    from control_plane.local.fleet_simulator import profile as profiles
    from control_plane.local.fleet_simulator.run import FleetRun, Wish

    lasts = seconds(duration, "--for") if duration else 0.0
    if output not in (Form.TABLE, Form.JSON, Form.YAML):
        raise CliError(f"-o {output.value}: use table, json or yaml", Exit.USAGE)
    found = profiles.load(profile)
    folder = data or data_folder() / "fleets" / found.name
    wish = Wish(devices, found, folder, seed, record)
    with Client() as client, _interruptible() as stop:
        run = FleetRun(wish, _plane(client))
        _enroll(run)
        if not enroll_only:
            _live(run, stop, lasts)
    _print(run.summary(), output)


def _plane(client: "Client") -> Any:
    from control_plane.local.fleet_simulator.run import ControlPlane

    def token(uses: int) -> str:
        body = {"labels": {}, "uses": uses, "ttl_s": TOKEN_S}
        return str(client.post("/api/v1/enrollment-tokens", body)["token"])

    def bundles(model: str, version: str) -> "Mapping[str, BundleRef]":
        return _bundles(client, model, version)

    return ControlPlane(client.context.url, token, bundles)


def _bundles(client: "Client", model: str, version: str) -> "Mapping[str, BundleRef]":
    from agent.protocol.messages import BundleRef
    from control_plane.cli.get import versions_path

    release = next(
        (int(v["release"]) for v in client.pages(versions_path(model)) if v["version"] == version),
        0,
    )
    built = client.pages("/api/v1/builds", model=model, version=version)
    return {
        one["blueprint"]: BundleRef(one["digest"], model, version, release, 0)
        for one in built
        if one["state"] == "SUCCEEDED" and one["digest"]
    }


def _enroll(run: "FleetRun") -> None:
    total = run.wish.devices

    def tell(done: int) -> None:
        if done == total or done % EVERY == 0:
            say(f"enrolled {done}/{total}")

    run.enroll(tell)


def _live(run: "FleetRun", stop: "list[Callable[[], None]]", lasts: float) -> None:
    import threading

    from control_plane.local.fleet_simulator.progress import Progress

    shown: list[Progress] = []

    def begun(simulation: "Simulation") -> None:
        stop.append(simulation.stop)
        if lasts:
            timer = threading.Timer(lasts, simulation.stop)
            timer.daemon = True
            timer.start()
        shown.append(Progress(simulation, run.wish.devices).__enter__())

    try:
        run.live(begun)
    finally:
        for one in shown:
            one.__exit__(None, None, None)


@contextmanager
def _interruptible() -> "Iterator[list[Callable[[], None]]]":
    """Yield a list of what Ctrl-C stops; before there is anything in it, Ctrl-C ends us."""
    stops: list[Callable[[], None]] = []

    def ask(_number: int, _frame: FrameType | None) -> None:
        if not stops:
            raise KeyboardInterrupt
        for stop in stops:
            stop()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(summary: dict[str, Any], output: Form) -> None:
    from control_plane.cli.output import show

    if output is not Form.TABLE:
        show(summary, output, [])
        return
    flat = {name: value for name, value in summary.items() if name != "rollouts"}
    rows: list[dict[str, Any]] = [{"what": name, "how": value} for name, value in flat.items()]
    for rollout, ends in summary["rollouts"].items():
        rows.append({"what": f"rollout {rollout}", "how": ends})
    show(rows, Form.TABLE, [("WHAT", "what"), ("HOW MANY", "how")])
