"""The server commands as processes of their own."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from control_plane.local import ports
from control_plane.signing.keyring import Keyring

COMMAND = [sys.executable, "-m", "control_plane.cli.main"]


def environment(data: Path, **settings: object) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLOTILLA_")}
    ours = {f"FLOTILLA_{name.upper()}": str(value) for name, value in settings.items()}
    return {**kept, "FLOTILLA_DATA": str(data), **ours}


def flotilla(data: Path, *words: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        env=environment(data, **settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def serving(data: Path, process: str, **settings: object) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [*COMMAND, "server", process],
        env=environment(data, **settings),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ends = time.monotonic() + 60
        while not ports.accepts("127.0.0.1", int(str(settings["api_port"]))):
            assert child.poll() is None, "it ended at once"
            assert time.monotonic() < ends, "it does not listen"
            time.sleep(0.05)
        yield child
    finally:
        child.kill()
        child.communicate(timeout=30)


def client(url: str, trust: ssl.SSLContext | None = None) -> httpx.Client:
    return httpx.Client(base_url=url, verify=trust or ssl.create_default_context(), timeout=30)


def test_the_api_serves_and_stops_cleanly_on_sigterm(tmp_path: Path, sqlite_url: str) -> None:
    port = free_port()
    with serving(tmp_path, "api", api_port=port, database_url=sqlite_url) as child:
        with client(f"http://127.0.0.1:{port}") as http:
            assert http.get("/healthz").json() == {"status": "ok"}
            assert http.get("/readyz").status_code == 200
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) in (0, -signal.SIGTERM)


def test_with_tls_the_dashboard_shows_a_certificate_of_the_fleets_ca(
    tmp_path: Path, sqlite_url: str
) -> None:
    port = free_port()
    keyring = Keyring.open(tmp_path / "keys")
    trust = ssl.create_default_context(cadata=keyring.ca_pem)
    with (
        serving(tmp_path, "dashboard", api_port=port, api_tls=True, database_url=sqlite_url),
        client(f"https://127.0.0.1:{port}", trust) as http,
    ):
        answer = http.get("/device/v1/ca")
    assert answer.text == keyring.ca_pem
    assert "strict-transport-security" in answer.headers


def test_the_database_is_upgraded_once(tmp_path: Path) -> None:
    first = flotilla(tmp_path, "db", "upgrade")
    again = flotilla(tmp_path, "db", "upgrade")
    assert (first.returncode, again.returncode) == (0, 0)
    assert first.stdout == again.stdout
    assert (tmp_path / "flotilla.db").exists()


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    said = flotilla(tmp_path, "server", "api", api_port="many")
    assert said.returncode == 2
    assert "FLOTILLA_API_PORT" in said.stderr
