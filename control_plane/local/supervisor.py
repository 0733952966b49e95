"""The embedded control plane: one data folder, and the processes that serve from it."""

import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

from control_plane.bootstrap import Application, utc_now
from control_plane.config import Settings
from control_plane.domain.errors import ConflictError, UnauthenticatedError
from control_plane.local import broker, guard, ports
from control_plane.local.children import Child, Supervisor
from control_plane.observability import logger
from control_plane.services import tokens
from control_plane.signing import keyfiles
from control_plane.store import migrate

MQTTS_PORT = 8883
TOKEN_NAME = "local-admin"  # noqa: S105 - a name
ENDPOINT_FILE = "endpoint.json"
# A supervisor that was killed leaves its ports busy until its guard has cleaned up.
PATIENCE_S = guard.GRACE_S + 3
TOKEN_FILE = "admin.token"  # noqa: S105 - a file name
# In this order: the gateway retries a broker that is late, and nothing retries the schema.
SERVERS = ("api", "gateway", "worker")

log = logger(__name__)


class LocalStack:
    """A running control plane on this machine; a context manager.

    Args:
        data: the folder for everything.
        settings: where it differs from the defaults; `data` is replaced.
    """

    def __init__(self, data: Path, settings: Settings | None = None) -> None:
        self.data = data.resolve()
        self._settings = (settings or Settings()).model_copy(update={"data": self.data})
        self._supervisor: Supervisor | None = None
        self._lock: IO[str] | None = None
        self.notice = ""
        self.admin_token = ""

    @property
    def url(self) -> str:
        return self._settings.url

    @property
    def settings(self) -> Settings:
        """Return the settings of the processes, with the ports they really have."""
        return self._settings

    @property
    def env(self) -> dict[str, str]:
        """Return the environment in which `flotilla` and our modules reach this control plane."""
        return environment(self._settings)

    @property
    def pids(self) -> dict[str, int]:
        return self._supervisor.pids() if self._supervisor else {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Bring everything up; returns when the API serves.

        Raises:
            ConflictError: another control plane uses this folder.
            StartError: a process did not start; says which, and its last words.
        """
        keyfiles.make_private(self.data)
        self._lock = _lock(self.data)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Take everything down; nothing is left running."""
        if self._supervisor:
            self._supervisor.stop()
            self._supervisor = None
        if self._lock:
            self._lock.close()
            self._lock = None

    def run_beside(self, child: Child) -> None:
        """Run one more program under the same supervision, such as an agent of the demo."""
        if self._supervisor is None:
            raise ConflictError("the local control plane is not running; start it first")
        self._supervisor.start(child)

    def adopt(self, group: int) -> None:
        """Have a process group ended should this process be killed; its caller ends it else."""
        if self._supervisor is None:
            raise ConflictError("the local control plane is not running; start it first")
        self._supervisor.adopt(group)

    def _start(self) -> None:
        migrate.upgrade(self._settings.sqlalchemy_url)
        self._settings = self._settings.model_copy(update=self._addresses())
        with _application(self._settings) as app:
            port = self._settings.mqtt_port
            local = broker.prepare(self._settings, app.keyring, port, utc_now())
            self.admin_token = _admin_token(app, self.data / TOKEN_FILE)
        self.notice = local.notice
        self._supervisor = Supervisor(self.data / "logs")
        self._supervisor.start(local.child)
        for name in SERVERS:
            self._supervisor.start(self._server(name))
        self._note_endpoint()
        log.info("stack.ready", url=self.url, broker=local.kind, data=str(self.data))

    def _addresses(self) -> dict[str, object]:
        """Return where to listen: the ports of the last time first, for devices know them."""
        asked, last = self._settings, _last_ports(self.data / ENDPOINT_FILE)
        given = asked.model_fields_set
        api = asked.api_port if "api_port" in given else last.get("api_port", asked.api_port)
        mqtt = asked.mqtt_port if "mqtt_port" in given else last.get("mqtt_port", MQTTS_PORT)
        patience = PATIENCE_S if last else 0.0
        return {
            "api_port": ports.choose(api, asked.api_host, patience_s=patience),
            "mqtt_host": broker.LOOPBACK,
            "mqtt_port": ports.choose(mqtt, broker.LOOPBACK, patience_s=patience),
            "mqtt_tls": True,
        }

    def _note_endpoint(self) -> None:
        endpoint = {
            "url": self.url,
            "token_file": TOKEN_FILE,
            "api_port": self._settings.api_port,
            "mqtt_port": self._settings.mqtt_port,
        }
        keyfiles.write_private(self.data / ENDPOINT_FILE, json.dumps(endpoint).encode())

    def _server(self, name: str) -> Child:
        command = [sys.executable, "-m", "control_plane.cli.main", "server", name]
        if name == "worker":
            command.append("--with-scheduler")  # an in-process queue ends at the process
        if name != "api":
            return Child(name, command, env=self.env)
        ready = f"http://{self._settings.api_host}:{self._settings.api_port}/readyz"
        return Child(name, command, env=self.env, ready=lambda: ports.responds(ready))


def up(settings: Settings, *, on_ready: Callable[[LocalStack], None] = lambda _stack: None) -> None:
    """Run the embedded control plane until SIGINT or SIGTERM.

    Args:
        settings: where it differs from the defaults; its data folder holds everything.
        on_ready: called once the API serves, with the running stack.

    Raises:
        ConflictError: another control plane uses the data folder.
        StartError: a process did not start.
    """
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():  # the second Ctrl-C: the person does not want to wait
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with LocalStack(settings.data, settings) as stack:
            on_ready(stack)
            stop.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment(settings: Settings) -> dict[str, str]:
    """Return ours with `settings` in it, for a process that must have the very same."""
    values: dict[str, Any] = settings.model_dump(mode="json", exclude_defaults=True)
    ours = {f"FLOTILLA_{name.upper()}": _text(value) for name, value in values.items()}
    return {**_without_settings(), **ours, "PYTHONPATH": broker.source_path()}


def _without_settings() -> dict[str, str]:
    names = {f"FLOTILLA_{name.upper()}" for name in Settings.model_fields}
    return {name: value for name, value in os.environ.items() if name not in names}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def _application(settings: Settings) -> Iterator[Application]:
    app = Application(settings)
    try:
        yield app
    finally:
        app.close()


def _last_ports(endpoint: Path) -> dict[str, int]:
    try:
        known = json.loads(endpoint.read_text())
        return {name: int(known[name]) for name in ("api_port", "mqtt_port")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # the first start, or not our file: nothing to keep


def _admin_token(app: Application, path: Path) -> str:
    """Return the token in `path`, made anew unless it still opens the door."""
    known = path.read_text().strip() if path.exists() else ""
    with app.scope("local") as scope:
        try:
            tokens.authenticate_api(scope, known)
        except UnauthenticatedError:
            known = tokens.create_api_token(scope, name=TOKEN_NAME)
    keyfiles.write_private(path, known.encode())
    return known


def _lock(data: Path) -> IO[str]:
    lock = (data / "up.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConflictError(
            f"a control plane already runs on {data}; stop it, or set FLOTILLA_DATA to another "
            "folder",
            field="FLOTILLA_DATA",
        ) from error
    return lock
