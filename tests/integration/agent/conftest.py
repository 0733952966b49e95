"""A simulated control plane and real agent processes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from control_plane.signing.keyring import Keyring
from tests.support import control_plane_simulator
from tests.support.brokers import MutualBroker
from tests.support.control_plane_simulator import Simulator

REPOSITORY = Path(__file__).resolve().parents[3]
FAKE_TRIAL = REPOSITORY / "tests/support/fake_trial.py"
WAIT_S = 60.0
END = "the agent has ended\n"


class Agent:
    """One device: its data folder, and the agent's process on it."""

    def __init__(self, plane: Simulator, data: Path, name: str = "edge-1") -> None:
        self.plane = plane
        self.data = data
        self.name = name
        self.environment: dict[str, str] = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "FLOTILLA_AGENT_TRIAL_COMMAND": f"{sys.executable} {FAKE_TRIAL}",
            "FLOTILLA_AGENT_RESEND_S": "0.5",
            "FLOTILLA_AGENT_RECONNECT_CAP_S": "0.5",
            "FLOTILLA_AGENT_HEARTBEAT_S": "1",
            "FLOTILLA_AGENT_DOWNLOAD_DEADLINE_S": "5",
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._log = -1
        self._reader: threading.Thread | None = None

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one command of flotilla-agent to its end."""
        return subprocess.run(
            [sys.executable, "-m", "agent", *arguments, "--data", str(self.data)],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.data.parent,
            timeout=WAIT_S,
        )

    def enroll(self, **options: str) -> subprocess.CompletedProcess[str]:
        asked = {
            "server": self.plane.url,
            "token": self.plane.token,
            "device": self.name,
            "blueprint": "board",
            **options,
        }
        words = [word for key, value in asked.items() for word in (f"--{key}", value)]
        return self.command("enroll", *words)

    def start(self, *, code: str = "") -> None:
        """Start the agent; `code` runs it in another way than by its module."""
        how = ["-c", code] if code else ["-m", "agent"]
        read, self._log = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, *how, "run", "--data", str(self.data)],
            env=self.environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self.data.parent,
        )
        self._reader = threading.Thread(target=self._read, args=(read,))
        self._reader.start()

    def _read(self, log: int) -> None:
        with os.fdopen(log, encoding="utf-8") as lines:
            for line in lines:
                if line == END:
                    return
                with self._changed:
                    self.lines.append(line)
                    self._changed.notify_all()

    def wait_line(self, part: str, after: int = 0) -> None:
        """Wait until the agent logs `part`."""
        with self._changed:
            seen = self._changed.wait_for(
                lambda: any(part in line for line in self.lines[after:]), WAIT_S
            )
        assert seen, f"{part!r} is not in:\n{''.join(self.lines)}"

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End the process and return its exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(how)
        status = self.process.wait(WAIT_S)
        # A child that a killed agent leaves behind holds its log open: it does not end by itself.
        with os.fdopen(self._log, "w", encoding="utf-8") as log:
            log.write(f"\n{END}")
        assert self._reader is not None
        self._reader.join(WAIT_S)
        self.process = None
        return status

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def status(self) -> dict[str, Any]:
        """Return what `flotilla-agent status` says."""
        done = self.command("status", "-o", "json")
        assert done.returncode == 0, done.stderr
        return msgspec.json.decode(done.stdout, type=dict[str, Any])


@pytest.fixture
def plane(
    keyring: Keyring, mutual_broker: Callable[[Keyring], MutualBroker]
) -> Iterator[Simulator]:
    """A control plane that does as it is told."""
    with control_plane_simulator.simulated(keyring, mutual_broker(keyring)) as simulator:
        yield simulator


@pytest.fixture
def device(plane: Simulator, tmp_path: Path) -> Iterator[Agent]:
    """An enrolled device whose agent is not running yet."""
    agent = Agent(plane, tmp_path / "device")
    done = agent.enroll()
    assert done.returncode == 0, done.stderr
    yield agent
    if agent.process is not None:
        agent.kill()
