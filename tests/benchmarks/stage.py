"""What benchmarks of the server play on: private services, a fleet of rows, processes with CPU."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from shutil import copy, rmtree
from typing import IO, Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.local import mosquitto
from tests.integration.engine.conftest import Fleet
from tests.support import databases, services
from tests.support.brokers import request_for

WAIT_S = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")
GATEWAY = """
import threading, signal
from control_plane.bootstrap import Application
from control_plane.gateway.main import collect_rarely, run_gateway
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
collect_rarely()
run_gateway(Application(), stop)
"""


def now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - certificates are checked against the real clock


@dataclass
class Stage:
    """A running PostgreSQL and a running Mosquitto with the fleet's authority."""

    folder: Path
    app: Application
    postgres: services.PostgreSQL
    broker: services.Service
    gateways: list["Process"] = field(default_factory=list)

    @property
    def fleet(self) -> Fleet:
        return Fleet(self.app, now=now())

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds that each part has used so far."""
        return {
            "broker": process_cpu_s(self.broker.pid),
            "database": family_cpu_s(self.postgres.pid),
            "gateway": sum(process_cpu_s(one.pid) for one in self.gateways),
        }

    @contextmanager
    def gateway(self, *names: str) -> Iterator[list["Process"]]:
        """Run a gateway process for each name, until the end of the block."""
        settings = self.app.settings
        try:
            for name in names:
                self.app.keyring.issue_service(name, [], now())
                environment = {
                    "FLOTILLA_DATA": str(settings.data),
                    "FLOTILLA_DATABASE_URL": settings.database_url,
                    "FLOTILLA_MQTT_PORT": str(self.broker.port),
                    "FLOTILLA_MQTT_TLS": "true",
                    "FLOTILLA_MQTT_HOST": "localhost",
                    "FLOTILLA_GATEWAY_NAME": name,
                    "FLOTILLA_SHARE_GROUP": "shared" if len(names) > 1 else "",
                }
                log = self.folder / f"{name}.log"
                self.gateways.append(Process(["-c", GATEWAY], environment, log))
            for one in self.gateways:
                one.wait_for("gateway.connected")
            yield self.gateways
        finally:
            for one in self.gateways:
                one.stop()
            self.gateways.clear()


class Process:
    """A Python process of ours, spoken to by lines."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._stderr = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, *argv],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if not environment else self._stderr,
            stderr=self._stderr,
        )
        self.pid = self._process.pid

    def ask(self, line: str = "") -> dict[str, Any]:
        """Send a line, if any, and return the answer."""
        stdin, stdout = _open(self._process.stdin), _open(self._process.stdout)
        if line:
            stdin.write(line.encode() + b"\n")
            stdin.flush()
        answer = stdout.readline()
        assert answer, f"it ended:\n{self._log.read_text()[-3000:]}"
        found: dict[str, Any] = json.loads(answer)
        return found

    def wait_for(self, text: str) -> None:
        """Wait until its log has a text."""
        give_up = time.monotonic() + WAIT_S
        while text not in self._log.read_text():
            assert time.monotonic() < give_up, f"no {text!r}:\n{self._log.read_text()[-3000:]}"
            time.sleep(0.05)  # a log tells nobody that it grew

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._stderr.close()


def _open(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


@contextmanager
def stage() -> Iterator[Stage]:
    """Start the services; everything is gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="flotilla-bench-"))
    postgres = services.postgresql()
    # What a small server of a fleet would have (docs/capacity.md).
    for option in ("shared_buffers=512MB", "max_wal_size=8GB", "random_page_cost=1.1"):
        postgres.argv += ["-c", option]
    broker: services.Service | None = None
    app: Application | None = None
    try:
        postgres.start()
        databases.create_schema(postgres.url())
        app = Application(Settings(data=folder, database_url=postgres.url())).open()
        broker = _broker(app)
        yield Stage(folder, app, postgres, broker.start())
    finally:
        if app is not None:
            app.close()
        if broker is not None:
            broker.discard()
        postgres.discard()
        rmtree(folder, ignore_errors=True)


def _broker(app: Application) -> services.Service:
    """Return a Mosquitto, configured as for one machine."""
    keyring = app.keyring
    folder = Path(tempfile.mkdtemp(prefix="flotilla-mosquitto-"))
    server = keyring.issue_service("broker", ["localhost"], now())
    acl = folder / "acl"
    acl.write_text(mosquitto.ACL)
    acl.chmod(0o600)
    port = services.free_port()
    text = mosquitto.configuration(
        host="127.0.0.1", port=port, ca=keyring.ca_path, certificate=server.certificate,
        key=server.key, acl=acl, folder=folder,
    )  # fmt: skip
    (folder / "mosquitto.conf").write_text(text)
    argv = [services.find("mosquitto"), "-c", str(folder / "mosquitto.conf")]
    return services.Service(argv, port=port, folder=folder)


def certify(stage: Stage, names: Sequence[str]) -> Path:
    """Write credentials for devices, all with one key, and return their folder."""
    folder = stage.folder / "devices"
    folder.mkdir()
    keyring = stage.app.keyring
    copy(keyring.ca_path, folder / "ca.pem")
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "device.key").write_bytes(private)
    request = request_for(key, "device")
    at = now()
    for name in names:
        issued = keyring.issue_device(request, name, at)
        (folder / f"{name}.pem").write_text(issued.certificate_pem)
    (folder / "names.json").write_text(json.dumps(list(names)))
    return folder


def process_cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process."""
    times = _stat(pid)
    return (int(times[11]) + int(times[12])) / _TICKS


def family_cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, its children, and its children that have ended."""
    times = _stat(pid)
    total = sum(int(times[index]) for index in (11, 12, 13, 14)) / _TICKS
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return total + sum(process_cpu_s(int(child)) for child in children)


def _stat(pid: int) -> list[str]:
    # The name, in brackets, may hold spaces; fields are counted after it.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
