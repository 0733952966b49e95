"""`flotilla up`: a whole control plane from one folder, and nothing left of it afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from control_plane.config import Settings
from control_plane.domain.errors import ConflictError, InvalidError
from control_plane.local.supervisor import LocalStack, environment

pytestmark = pytest.mark.integration

WAIT_S = 90.0
NAMES = {"broker", "api", "gateway", "worker"}


def eventually(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)  # processes of others cannot be awaited


def running(pids: list[int]) -> list[int]:
    """Return those that exist and are not zombies."""
    listed = subprocess.run(["ps", "-eo", "pid=,stat="], capture_output=True, text=True, check=True)
    alive = {
        int(pid)
        for pid, state in (line.split() for line in listed.stdout.splitlines())
        if not state.startswith("Z")
    }
    return [pid for pid in pids if pid in alive]


def devices(url: str, token: str) -> dict[str, object]:
    """Ask the API for the devices, as anybody with a token can."""
    request = urllib.request.Request(  # noqa: S310 - the URL is ours
        f"{url}/api/v1/devices", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - the URL is ours
        body: dict[str, object] = json.load(answer)
        return body


@pytest.mark.parametrize("broker", ["mosquitto", "amqtt"])
def test_the_api_answers_whoever_has_the_token_in_the_folder(tmp_path: Path, broker: str) -> None:
    with LocalStack(tmp_path, Settings(broker=broker)) as stack:
        pids = list(stack.pids.values())
        endpoint = json.loads((tmp_path / "endpoint.json").read_text())
        token = (tmp_path / endpoint["token_file"]).read_text()
        answer = devices(endpoint["url"], token)
        assert set(stack.pids) == NAMES
        assert bool(stack.notice) == (broker == "amqtt")

    assert answer["items"] == []
    assert running(pids) == []


def test_a_second_start_keeps_ports_and_token_that_devices_and_people_know(tmp_path: Path) -> None:
    with LocalStack(tmp_path) as first:
        before = (first.url, first.settings.mqtt_port, first.admin_token)
        with pytest.raises(ConflictError, match="already runs on"):
            LocalStack(tmp_path).start()

    with LocalStack(tmp_path) as second:
        assert (second.url, second.settings.mqtt_port, second.admin_token) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_control_plane_that_was_told_or_made_to_stop(
    tmp_path: Path, number: signal.Signals
) -> None:
    argv = [sys.executable, "-m", "control_plane.cli.main", "up"]
    env = environment(Settings(data=tmp_path))
    with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL) as up:
        eventually((tmp_path / "endpoint.json").exists, "did not come up")
        children = children_of(up.pid)
        os.kill(up.pid, number)
        code = up.wait(WAIT_S)

    assert len(children) >= len(NAMES)
    eventually(lambda: running(children) == [], "something is left")
    assert code == (-number if number == signal.SIGKILL else 0)


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    return [child for child, parent in pairs if parent == pid]


def test_an_address_of_another_machine_is_refused_by_name_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    with pytest.raises(InvalidError, match=r"cannot listen on 203\.0\.113\.7") as caught:
        LocalStack(tmp_path, Settings(api_host="203.0.113.7")).start()

    assert caught.value.field == "FLOTILLA_API_HOST"
    with LocalStack(tmp_path) as stack:  # the folder is free again
        assert set(stack.pids) == NAMES
