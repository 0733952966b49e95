"""The image's scripts, run for real on temporary folders."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.protocol import topics
from agent.protocol.enrollment import parse_token
from agent.protocol.topics import DeviceId
from control_plane.bootstrap import Application, utc_now
from control_plane.config import Settings
from control_plane.local.mosquitto import GATEWAY
from control_plane.local.supervisor import environment
from control_plane.services import tokens
from control_plane.signing.keyring import Keyring
from tests.support import mqtt, services
from tests.support.brokers import ClientFiles, device_files

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
EDGE = DeviceId("compose-1")

pytestmark = pytest.mark.integration


def run(script: str, *options: str, settings: Settings) -> None:
    argv = [sys.executable, str(DEPLOY / script), *options]
    done = subprocess.run(argv, env=environment(settings), capture_output=True, text=True)  # noqa: PLW1510 - the output goes into the failure
    assert done.returncode == 0, done.stderr


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path, keys=tmp_path / "keys")


@pytest.fixture
def prepared(tmp_path: Path, settings: Settings) -> Path:
    prepare(tmp_path, settings)
    return tmp_path


def prepare(folder: Path, settings: Settings) -> None:
    run(
        "prepare.py",
        f"--keys={folder / 'keys'}",
        f"--broker={folder / 'broker'}",
        f"--secrets={folder / 'secrets'}",
        f"--acl={DEPLOY / 'acl'}",
        "--broker-name=mosquitto",
        settings=settings,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_preparing_again_keeps_every_key_and_secret(prepared: Path, settings: Settings) -> None:
    before = {name: contents(prepared / name) for name in ("keys", "broker", "secrets")}

    prepare(prepared, settings)

    assert {name: contents(prepared / name) for name in before} == before


def test_secrets_are_for_their_owner_only(prepared: Path) -> None:
    modes = {
        stat.S_IMODE(path.stat().st_mode)
        for name in ("keys", "broker", "secrets")
        for path in (prepared / name).glob("*")
        if path.name != ".lock"
    }

    assert modes == {0o600}


def test_init_makes_tokens_that_work_and_keeps_the_one_for_people(
    prepared: Path, settings: Settings
) -> None:
    options = (f"--admin-token={prepared / 'admin'}", f"--device-token={prepared / 'device'}")
    run("init.py", *options, settings=settings)
    first = (prepared / "admin").read_text()
    run("init.py", *options, settings=settings)

    app = Application(settings)
    with app.reading("test") as scope:
        assert tokens.authenticate_api(scope, first) == "admin"
    app.close()
    assert (prepared / "admin").read_text() == first
    token = parse_token((prepared / "device").read_text())
    assert token.ca_sha256 == Keyring.open(prepared / "keys").ca_sha256


def test_the_entrypoint_turns_secret_files_into_settings(tmp_path: Path) -> None:
    (tmp_path / "postgres-password").write_text("p-1")
    (tmp_path / "share-group").write_text("g-1")
    script = (DEPLOY / "entrypoint.sh").read_text()
    here = script.replace("/run/flotilla/secrets", str(tmp_path))

    shown = subprocess.run(
        ["sh", "-c", here, "entrypoint.sh", "env"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    url = "postgresql+psycopg://flotilla:p-1@postgres:5432/flotilla"
    assert f"FLOTILLA_DATABASE_URL={url}\n" in shown
    assert "FLOTILLA_SHARE_GROUP=g-1\n" in shown


@pytest.fixture
def broker(prepared: Path) -> Iterator[services.Service]:
    """The image's broker configuration, with this machine's paths and a free port."""
    text = (DEPLOY / "mosquitto.conf").read_text()
    text = text.replace("/mosquitto/fleet", str(prepared / "broker"))
    text = re.sub(
        r"^(listener|persistence|persistence_location|autosave_interval) .*$",
        "",
        text,
        flags=re.MULTILINE,
    )
    server = services.mosquitto(text)
    yield server.start()
    server.discard()


def test_the_brokers_configuration_carries_a_report_of_a_device_only_as_itself(
    prepared: Path, broker: services.Service
) -> None:
    keyring = Keyring.open(prepared / "keys")
    paths = keyring.issue_service(GATEWAY, [], utc_now())
    device = device_files(keyring, EDGE)
    with (
        mqtt.client(GATEWAY, broker.port, ClientFiles(keyring.ca_path, *paths)) as gateway,
        mqtt.client(EDGE, broker.port, device) as edge,
    ):
        assert gateway.subscribe(topics.all_up("secret-group"))
        edge.publish(topics.up(DeviceId("other"), "events"), b"forged")
        edge.publish(topics.up(EDGE, "events"), b"report")

        assert gateway.next().payload == b"report"
