"""The real stack for large simulated fleets: as real_stack.py, without TLS unless asked for.

A handshake with mutual TLS costs some 4 ms of processor on the simulator's side and 2.6 ms on the
broker's; on two cores that would be most of what a benchmark of ten thousand devices measures. So
devices come with their own secret as password, on loopback, as the product allows; `tls=True` does
the same with certificates.
"""

import base64
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho

from control_plane.bootstrap import Application, utc_now
from control_plane.local.children import Child
from control_plane.local.mosquitto import ACL, GATEWAY, GATEWAYS, limits
from control_plane.signing.keyring import Keyring
from tests.support import seed_bundles, services
from tests.support.real_stack import RealStack

GATEWAY_PASSWORD = "gateway-of-the-tests"
ITERATIONS = 101  # mosquitto_passwd's own


class FleetStack(RealStack):
    """A running control plane that knows bundles; a context manager."""

    def __init__(
        self, data: Path, postgres_url: str, redis_server: services.Redis, *, tls: bool = False
    ) -> None:
        super().__init__(data, postgres_url, redis_server)
        if not tls:
            self._broker.service.discard()
            self._plain = PlainBroker(data)
            self._broker = self._plain  # type: ignore[assignment]  # the same two attributes
            plain = {"mqtt_tls": False, "mqtt_port": self._plain.port, "share_group": ""}
            user = {"mqtt_username": GATEWAY, "mqtt_password": GATEWAY_PASSWORD}
            self.settings = self.settings.model_copy(update=plain | user)
        self.tls = tls

    @property
    def broker(self) -> services.Service:
        return self._broker.service

    @property
    def pids(self) -> dict[str, int]:
        """Return the process ids of the server processes by name."""
        assert self._supervisor is not None
        return {**self._supervisor.pids(), "broker": self.broker.pid}

    def __enter__(self) -> Self:
        super().__enter__()
        app = Application(self.settings)
        seed_bundles.seed(app)
        app.close()
        return self

    def admit(self, fleet: Path) -> None:
        """Tell the broker the passwords of the devices enrolled in a simulator's folder."""
        if not self.tls:
            lines = (fleet / "identities.jsonl").read_text().splitlines()
            known = [json.loads(line) for line in lines]
            self._plain.admit({one["device"]: one["secret"] for one in known})

    def let_in(self, client: paho.Client, name: str) -> None:
        """Give a client what it needs to be taken for a gateway of this name."""
        if self.tls:
            keyring = Keyring.open(self.settings.keys_folder)
            files = keyring.issue_service(name, [], utc_now())
            client.tls_set(str(keyring.ca_path), str(files.certificate), str(files.key))
        else:
            client.username_pw_set(name, GATEWAY_PASSWORD)

    def simulator(self, folder: Path, *words: str) -> subprocess.Popen[bytes]:
        """Start `flotilla simulate-fleet` with these words; its errors go to `folder`."""
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "control_plane.cli.main", "simulate-fleet"]
        files = ["--data", str(folder / "fleet"), "--record", str(folder / "record.jsonl")]
        own = {"FLOTILLA_URL": self.url, "FLOTILLA_TOKEN": self.admin_token}
        with (folder / "summary.json").open("wb") as out, (folder / "errors").open("ab") as err:
            return subprocess.Popen(
                [*command, *files, "-o", "json", *words],
                env={**os.environ, **self.env, **own},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def _server(self, name: str) -> Child:
        child = super()._server(name)
        # An enrolment costs the API more than ten milliseconds: both cores, for ten thousand.
        return child if name != "api" else replace(child, argv=[*child.argv, "--workers", "2"])


def summary(folder: Path, simulator: subprocess.Popen[bytes]) -> dict[str, Any]:
    """End a simulator as Ctrl-C does, and return what it says of itself."""
    simulator.send_signal(signal.SIGINT)
    code = simulator.wait(120)
    assert code == 0, (folder / "errors").read_text()[-3000:]
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


class PlainBroker:
    """A Mosquitto with a password a device, and the limits and the ACL of production."""

    def __init__(self, data: Path) -> None:
        folder = Path(tempfile.mkdtemp(prefix="flotilla-mosquitto-"))
        self._passwords = data / "broker.passwords"
        self.admit({})
        acl = data / "broker.acl"
        acl.write_text(ACL)
        acl.chmod(0o600)
        port = services.free_port()
        lines = [
            f"listener {port} 127.0.0.1",
            "allow_anonymous false",
            f"password_file {self._passwords}",
            f"acl_file {acl}",
            "use_username_as_clientid true",
            *limits(),
            "persistence true",
            f"persistence_location {folder}/",
            "autosave_interval 60",
        ]
        if os.getuid() == 0:
            lines.append("user root")
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        argv = [services.find("mosquitto"), "-c", str(folder / "mosquitto.conf")]
        self.service = services.Service(argv, port=port, folder=folder)

    @property
    def port(self) -> int:
        return self.service.port

    def admit(self, passwords: dict[str, str]) -> None:
        everyone = {**dict.fromkeys(GATEWAYS, GATEWAY_PASSWORD), **passwords}
        self._passwords.write_text("".join(map(_line, everyone, everyone.values())))
        self._passwords.chmod(0o600)
        if passwords and self.service.process is not None:
            os.kill(self.service.pid, signal.SIGHUP)


def _line(name: str, password: str) -> str:
    salt = secrets.token_bytes(12)
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS, 64)
    parts = (base64.b64encode(part).decode() for part in (salt, key))
    return f"{name}:$7${ITERATIONS}${'$'.join(parts)}\n"
