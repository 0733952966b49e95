"""The embedded broker: an installed Mosquitto as a child, else amqtt in a child on loopback."""

import os
import sys
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from control_plane.config import Settings
from control_plane.domain.errors import InvalidError
from control_plane.local import mosquitto, ports
from control_plane.local.children import Child
from control_plane.signing.keyring import Keyring

Kind = Literal["mosquitto", "amqtt"]
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class LocalBroker:
    """A broker to run: which one, where it will listen, and a word for people."""

    kind: Kind
    child: Child
    host: str
    port: int
    notice: str


def choose(wish: str) -> Kind:
    """Return which broker to run.

    Args:
        wish: ``auto``, ``mosquitto`` or ``amqtt``.

    Raises:
        InvalidError: the wish cannot be met on this machine.
    """
    installed = mosquitto.find() is not None
    if wish not in {"auto", "mosquitto", "amqtt"}:
        raise InvalidError(f"{wish!r}: use auto, mosquitto or amqtt", field="FLOTILLA_BROKER")
    if wish == "mosquitto" and not installed:
        raise InvalidError(
            "mosquitto is not on the PATH; install it (apt-get install mosquitto, "
            "brew install mosquitto) or use FLOTILLA_BROKER=amqtt",
            field="FLOTILLA_BROKER",
        )
    if installed and wish != "amqtt":
        return "mosquitto"
    if find_spec("amqtt") is None:
        raise InvalidError(
            "no broker: install mosquitto, or amqtt with pip install 'flotilla[embedded]'",
            field="FLOTILLA_BROKER",
        )
    return "amqtt"


def prepare(settings: Settings, keyring: Keyring, port: int, now: datetime) -> LocalBroker:
    """Write the broker's configuration for a free port and return what to run."""
    kind = choose(settings.broker)
    server = keyring.issue_service("broker", [settings.mqtt_public_host or LOOPBACK], now)
    if kind == "amqtt":
        argv = _amqtt(port, keyring.ca_path, server.certificate, server.key)
        notice = "mosquitto is not installed: amqtt stands in, on loopback only, for trying out"
    else:
        argv = _mosquitto(port, settings.data.resolve() / "mosquitto", keyring, server)
        notice = ""
    child = Child("broker", argv, ready=lambda: ports.accepts(LOOPBACK, port), env=_environment())
    return LocalBroker(kind, child, LOOPBACK, port, notice)


def _mosquitto(port: int, folder: Path, keyring: Keyring, server: tuple[Path, Path]) -> list[str]:
    program = mosquitto.find()
    assert program is not None  # noqa: S101 - `choose` found it
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    acl = folder / "acl"
    acl.write_text(mosquitto.ACL)
    acl.chmod(0o600)
    configuration = folder / "mosquitto.conf"
    configuration.write_text(
        mosquitto.configuration(
            host=LOOPBACK,
            port=port,
            ca=keyring.ca_path,
            certificate=server[0],
            key=server[1],
            acl=acl,
            folder=folder,
        )
    )
    return [program, "-c", str(configuration)]


def _amqtt(port: int, ca: Path, certificate: Path, key: Path) -> list[str]:
    module = [sys.executable, "-m", "control_plane.local.amqtt_broker"]
    where = ["--host", LOOPBACK, "--port", str(port)]
    return [*module, *where, "--ca", str(ca), "--certificate", str(certificate), "--key", str(key)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": source_path()}


def source_path() -> str:
    """Return PYTHONPATH for a child that must find the code that runs here."""
    here = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
