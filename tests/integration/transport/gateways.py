"""Gateways under test: in a thread of this process, or in a process that can be killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import func, select
from structlog.testing import capture_logs

from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.gateway.main import run_gateway
from control_plane.store import schema
from control_plane.store.database import Database

WAIT_S = 30.0
_MAIN = """
import threading
from control_plane.bootstrap import Application
from control_plane.gateway.main import run_gateway
run_gateway(Application(), threading.Event())
"""


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what only a look can tell; fails when it does not come."""
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, f"still not: {what}"
        time.sleep(0.02)


def on_broker(app: Application, port: int, **changes: object) -> Application:
    """Return the application with its broker on `port`; shares the database."""
    settings = app.settings.model_copy(update={"mqtt_port": port, **changes})
    return Application(settings)


Lines = list[MutableMapping[str, Any]]


@contextmanager
def running(*apps: Application, connected: bool = True) -> Iterator[Lines]:
    """Run gateways in threads, and end them at the end.

    Args:
        apps: an application for each.
        connected: wait until each is subscribed; only then does the broker keep reports for it.

    Yields:
        What they log, as it comes.
    """
    stop = threading.Event()
    threads = [threading.Thread(target=run_gateway, args=(app, stop)) for app in apps]
    with capture_logs() as lines:
        for thread in threads:
            thread.start()
        try:
            if connected:
                until(lambda: len(logged(lines, "gateway.connected")) == len(apps), "connected")
            yield lines
        finally:
            stop.set()
            for thread in threads:
                thread.join(WAIT_S)
            for app in apps:
                app.close()
    assert not any(thread.is_alive() for thread in threads), "a gateway did not stop"


def logged(lines: Lines, event: str) -> Lines:
    """Return the lines of one event."""
    return [line for line in lines if line["event"] == event]


class GatewayProcess:
    """A gateway that can be killed.

    Args:
        settings: its settings, handed over in its environment.
        log: where its output goes.
    """

    def __init__(self, settings: Settings, log: Path) -> None:
        self._log = log
        self._environment = {
            **os.environ,
            "FLOTILLA_DATA": str(settings.data),
            "FLOTILLA_DATABASE_URL": settings.database_url,
            "FLOTILLA_MQTT_HOST": settings.mqtt_host,
            "FLOTILLA_MQTT_PORT": str(settings.mqtt_port),
            "FLOTILLA_GATEWAY_NAME": settings.gateway_name,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it as the kernel would, without a word."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(WAIT_S)


def seen(database: Database) -> int:
    """Return how many reports were counted."""
    with database.reading() as tx:
        return tx.execute(select(func.count()).select_from(schema.report_seen)).scalar_one()


def waiting(database: Database) -> int:
    """Return how many messages are in the outbox."""
    with database.reading() as tx:
        return tx.execute(select(func.count()).select_from(schema.outbox)).scalar_one()
