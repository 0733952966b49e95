"""server: the processes of a control plane, one command each."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from control_plane.cli.exits import CliError, Exit

if TYPE_CHECKING:
    from control_plane.bootstrap import Application
    from control_plane.config import Settings

app = typer.Typer(help="The processes of a control plane.", no_args_is_help=True)

STOP_S = 2  # what open streams get after SIGTERM

Host = Annotated[str, typer.Option(help="Address to listen on; empty: FLOTILLA_API_HOST.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0: FLOTILLA_API_PORT.")]


@app.command()
def api(
    host: Host = "",
    port: Port = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the port.")] = 1,
) -> None:
    """Serve the API and the dashboard."""
    _serve("api", host, port, workers)


@app.command()
def dashboard(host: Host = "", port: Port = 0) -> None:
    """Serve the dashboard from a process of its own; it needs the API's database only."""
    _serve("dashboard", host, port, 1)


@app.command()
def gateway() -> None:
    """Carry orders to the broker, reports to the database, and events to webhooks."""
    with _application("gateway") as application, _stopping() as stop:
        from control_plane.gateway.courier import Courier
        from control_plane.gateway.main import collect_rarely, run_gateway

        with Courier(application.open(), stop):
            collect_rarely()
            run_gateway(application, stop)


@app.command()
def worker(
    with_scheduler: Annotated[
        bool, typer.Option("--with-scheduler", help="Also move rollouts, in the same process.")
    ] = False,
) -> None:
    """Build model versions."""
    with _application("worker") as application:
        from control_plane.jobs.worker import run_worker

        run_worker(application, with_scheduler=with_scheduler)


@app.command()
def scheduler() -> None:
    """Move rollouts: one tick after the other."""
    with _application("scheduler") as application:
        from control_plane.jobs.scheduler import run_scheduler

        run_scheduler(application)


def settings() -> "Settings":
    """Read the settings; a wrong one is named."""
    from pydantic import ValidationError

    from control_plane.config import Settings

    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = f"FLOTILLA_{'_'.join(str(part) for part in first['loc'])}".upper()
        raise CliError(f"{name}: {first['msg']}", Exit.USAGE) from error


@contextmanager
def _application(process: str) -> "Iterator[Application]":
    from control_plane.bootstrap import Application
    from control_plane.observability import configure_logging

    found = settings()
    configure_logging(found.log_level, json=found.log_json, process=process)
    application = Application(found)
    try:
        yield application
    finally:
        application.close()


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(process: str, host: str, port: int, workers: int) -> None:
    import uvicorn

    with _application(process) as application:
        found = application.settings
        certificate = key = None
        if found.api_tls:
            certificate, key = _certificate(application)
        uvicorn.run(
            "control_plane.api.main:from_environment",
            factory=True,
            host=host or found.api_host,
            port=port or found.api_port,
            workers=workers,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            log_config=None,
            access_log=False,  # a login link has its token in the query
            server_header=False,
            timeout_graceful_shutdown=STOP_S,
        )


def _certificate(application: "Application") -> tuple[str, str]:
    from urllib.parse import urlsplit

    from control_plane.bootstrap import utc_now

    found = application.settings
    names = {found.api_host, urlsplit(found.url).hostname or ""} - {"", "0.0.0.0", "::"}  # noqa: S104 - left out, not bound
    files = application.keyring.issue_service("flotilla-api", sorted(names), utc_now())
    return str(files.certificate), str(files.key)
