"""Short-lived child processes: what is heavy or hostile happens there, never in the resident."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from agent.cancellation import Cancellation
from agent.errors import ChildError

STOP_S = 5.0  # a child that ignores SIGTERM so long is killed
MAX_OUTPUT = 4 << 20


class ChildTimeoutError(ChildError):
    """A child process was still running at its time limit."""


class Ended(NamedTuple):
    """How a child process ended."""

    status: int
    output: bytes


def python(module: str) -> list[str]:
    """Return the command that runs one of our modules with this interpreter."""
    # -P: the folder that we happen to stand in may hold a module of that name.
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """Return the child's environment: this package on its path, no runtime that phones home."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "ORT_DISABLE_TELEMETRY": "1"}


def run(
    command: list[str],
    written: bytes,
    *,
    timeout_s: float,
    cancel: Cancellation | None = None,
) -> Ended:
    """Run a child to its end: `written` on its stdin, its stdout in the answer.

    Raises:
        ChildTimeoutError: it ran longer than `timeout_s` and was stopped.
        ChildError: it could not be started, or wrote more than any answer has.
        CanceledError: the step was called off, and the child stopped.
    """
    cancel = cancel or Cancellation()
    cancel.check()
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
        )
    except OSError as error:
        raise ChildError(f"{command[0]}: {error.strerror}") from error
    with child:
        try:
            with cancel.stopping(child.terminate):
                output, _ = child.communicate(written, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ChildTimeoutError(f"{command[-1]}: still running after {timeout_s} s") from error
        finally:
            _stop(child)
    cancel.check()
    if len(output) > MAX_OUTPUT:
        raise ChildError(f"{command[-1]}: answered {len(output)} bytes; the limit is {MAX_OUTPUT}")
    return Ended(child.returncode, output)


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """Stop a child that is still running; it takes its own children with it on SIGTERM."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
