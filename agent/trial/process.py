"""A block's process as its coordinator sees it: ask, read, end; neither numpy nor onnxruntime."""

import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from agent.trial.readings import EXIT_MALFORMED, MAX_LINE, BlockRequest

R = TypeVar("R", bound=msgspec.Struct)


class BlockCrashedError(Exception):
    """A block's process ended, or wrote something else, where its reading was due."""

    def __init__(self, folder: str, why: str) -> None:
        super().__init__(f"{folder}: {why}")
        self.folder = folder


class BlockMalformedError(BlockCrashedError):
    """A block's process could not read its bundle: to try again is no use."""


class BlockTimeoutError(Exception):
    """A block's process had no reading at the deadline."""


class BlockProcess:
    """One running block; leaving its context kills whatever is left of it."""

    def __init__(self, request: BlockRequest, deadline: float) -> None:
        """Start the process; `deadline` is a value of time.monotonic()."""
        self.folder = request.folder
        self.deadline = deadline
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "agent.trial.block"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
        )
        self._send(msgspec.json.encode(request))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with self.process:  # closes the pipes and waits
            pass

    def read(self, kind: type[R]) -> R:
        """Return the answer that is due."""
        out = self.process.stdout
        assert out is not None  # noqa: S101 - asked for in the constructor
        # Question and answer alternate, so nothing is ever left in the reader's buffer.
        if not select.select([out], [], [], max(0.0, self.deadline - time.monotonic()))[0]:
            raise BlockTimeoutError(self.folder)
        line = out.readline(MAX_LINE)
        if not line:
            status = self.process.wait()
            fault = BlockMalformedError if status == EXIT_MALFORMED else BlockCrashedError
            raise fault(self.folder, f"exit status {status}")
        try:
            return msgspec.json.decode(line, type=kind)
        except msgspec.MsgspecError as error:
            raise BlockCrashedError(self.folder, str(error)) from error

    def ask(self, step: str, kind: type[R]) -> R:
        """Ask for one more step."""
        self._send(step.encode())
        return self.read(kind)

    def end(self, kind: type[R]) -> R:
        """Say that no more steps come, and return the last answer."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        return self.read(kind)

    def _send(self, line: bytes) -> None:
        if self.process.stdin is None:
            return
        try:
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return  # it died; the next read says how


def _environment() -> dict[str, str]:
    """Return our environment, with this very package first and every telemetry off."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "ORT_DISABLE_TELEMETRY": "1"}
