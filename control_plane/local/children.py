"""The supervisor: children in order, each ready before the next; crashed ones again; none left."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from control_plane.domain.errors import FlotillaError
from control_plane.local import guard
from control_plane.observability import logger

READY_S = 60.0
STOP_S = 15.0
POLL_S = 0.05
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
# One that ran this long did not crash because of how it started.
STEADY_S = 60.0
LOG_TAIL = 2000  # bytes of a child's log that an error shows

log = logger(__name__)


class StartError(FlotillaError):
    """A child did not become ready; the message ends with the last lines of its log."""

    code = "start"


@dataclass(frozen=True)
class Child:
    """A program to keep running.

    Args:
        name: names its log file.
        argv: the command.
        ready: whether it serves; asked again and again until it does.
        env: its whole environment; None for ours.
    """

    name: str
    argv: Sequence[str]
    ready: Callable[[], bool] = field(default=lambda: True)
    env: Mapping[str, str] | None = None


class Supervisor:
    """Runs children, each in a process group of its own with its own log file.

    Args:
        logs: folder of ``<name>.log``.
    """

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._stopping = threading.Event()
        self._keepers: list[_Keeper] = []
        self._guard = _start_guard()

    def start(self, child: Child) -> None:
        """Start a child and wait until it is ready.

        Raises:
            StartError: it ended, or was not ready within `READY_S`.
        """
        keeper = _Keeper(child, self._logs / f"{child.name}.log", self._stopping, self._tell_guard)
        self._keepers.append(keeper)
        keeper.spawn()
        give_up = time.monotonic() + READY_S
        while not child.ready():
            code = keeper.exit_code
            if code is not None or time.monotonic() > give_up or self._stopping.is_set():
                why = f"ended with {code}" if code is not None else "is not ready in time"
                raise StartError(f"{child.name} {why}; its log ({keeper.log}) says:\n{keeper.tail}")
            self._stopping.wait(POLL_S)
        keeper.keep()

    def pids(self) -> dict[str, int]:
        """Return the process id of each child by name."""
        return {keeper.child.name: keeper.pid for keeper in self._keepers}

    def adopt(self, group: int) -> None:
        """Have a process group that others run ended, should this process be killed."""
        self._tell_guard(f"+{group}")

    def stop(self) -> None:
        """End every child, the last started first, with all it started."""
        self._stopping.set()
        for keeper in reversed(self._keepers):
            keeper.end()
        self._keepers.clear()
        if self._guard.stdin:
            self._guard.stdin.close()
        self._guard.wait()

    def _tell_guard(self, line: str) -> None:
        stdin: IO[str] | None = self._guard.stdin
        if stdin and not stdin.closed:
            stdin.write(line + "\n")
            stdin.flush()


class _Keeper:
    """One child over its restarts; each start is watched by the thread that waits for its end."""

    def __init__(
        self, child: Child, log_file: Path, stopping: threading.Event, tell: Callable[[str], None]
    ) -> None:
        self.child = child
        self.log = log_file
        self._stopping = stopping
        self._tell_guard = tell
        self._lock = threading.Lock()  # a child is not started while we stop
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    @property
    def tail(self) -> str:
        return self.log.read_bytes()[-LOG_TAIL:].decode(errors="replace").strip()

    def spawn(self) -> None:
        with self._lock, self.log.open("ab") as out:
            if self._stopping.is_set():
                return
            self._process = subprocess.Popen(
                list(self.child.argv),
                env=dict(self.child.env) if self.child.env is not None else None,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                # Ctrl-C in a terminal goes to us alone; we end children in order.
                start_new_session=True,
            )
            self._tell_guard(f"+{self._process.pid}")

    def keep(self) -> None:
        """Start it again whenever it ends, until everything stops."""
        name = f"keep-{self.child.name}"
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)
        self._thread.start()

    def end(self) -> None:
        with self._lock:
            process = self._process
        if process is None:
            return
        guard.send(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            log.warning("child.killed", child=self.child.name, pid=process.pid)
        self._bury(process)
        if self._thread:
            self._thread.join()

    def _keep(self) -> None:
        delay = FIRST_DELAY_S
        while self._process is not None:
            began = time.monotonic()
            code = self._process.wait()
            if self._stopping.is_set():
                return
            self._bury(self._process)
            if time.monotonic() - began > STEADY_S:
                delay = FIRST_DELAY_S
            log.warning("child.ended", child=self.child.name, code=code, restart_in_s=delay)
            if self._stopping.wait(delay):
                return
            delay = min(2 * delay, LONGEST_DELAY_S)
            self.spawn()

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        """Kill what is left of the group: a child may have started others."""
        guard.send(process.pid, signal.SIGKILL)
        process.wait()
        self._tell_guard(f"-{process.pid}")


def _start_guard() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
        env={"PATH": os.defpath},
    )
