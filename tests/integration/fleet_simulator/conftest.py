"""A control plane on this machine, and a fleet simulated against it by the command."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from control_plane.bootstrap import Application
from control_plane.cli.client import Client
from control_plane.cli.context import Context
from control_plane.config import Settings
from control_plane.local.supervisor import LocalStack
from tests.support import seed_bundles
from tests.support.fleet_record import Record

END_S = 30


class Simulated:
    """A running `flotilla simulate-fleet`."""

    def __init__(self, stack: LocalStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self.record = Record(folder / "record.jsonl", lambda: self.process.poll() is None)
        self.process: subprocess.Popen[bytes]

    def start(self, devices: int, profile: Path, *words: str) -> None:
        files = [
            "--data",
            str(self._folder / "fleet"),
            "--record",
            str(self._folder / "record.jsonl"),
        ]
        command = [sys.executable, "-m", "control_plane.cli.main", "simulate-fleet"]
        asked = ["--devices", str(devices), "--profile", str(profile), "-o", "json", *words]
        with (self._folder / "summary").open("wb") as out, (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *asked, *files],
                env={**os.environ, **self._stack.env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )

    def connected(self, devices: int, since: float = 0.0) -> None:
        """Wait until so many devices have come since."""
        self.record.wait(
            lambda record: (
                len({one["device"] for one in record.since(since, what="up")}) >= devices
            ),
            f"{devices} devices have come; it says:\n{(self._folder / 'log').read_text()[-2000:]}",
        )

    def end(self) -> dict[str, Any]:
        """End it as Ctrl-C does, and return its summary."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(END_S) == 0, (self._folder / "log").read_text()[-3000:]
        found: dict[str, Any] = json.loads((self._folder / "summary").read_text())
        return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    with LocalStack(tmp_path_factory.mktemp("stack"), Settings(tick_s=0.2)) as running:
        app = Application(running.settings)
        seed_bundles.seed(app)
        app.close()
        yield running


@pytest.fixture
def api(stack: LocalStack) -> Iterator[Client]:
    with Client(Context(stack.url, stack.admin_token)) as client:
        yield client


@pytest.fixture
def fleets(stack: LocalStack, tmp_path: Path) -> Iterator[Callable[[], Simulated]]:
    """Return a simulated fleet that is not started yet; each is gone at the end."""
    made: list[Simulated] = []

    def make() -> Simulated:
        folder = tmp_path / f"fleet-{len(made)}"
        folder.mkdir()
        made.append(Simulated(stack, folder))
        return made[-1]

    yield make
    for one in made:
        if hasattr(one, "process") and one.process.poll() is None:
            one.process.kill()
            one.process.wait()
