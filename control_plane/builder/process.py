"""Runs a stranger's bytes in a process of its own: limits, own group, killed with its parent.

Parent side: `run`. Child side: `confine`, first thing.
"""

import contextlib
import ctypes
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from control_plane.builder import job as files
from control_plane.builder.errors import BuildError
from control_plane.builder.job import Caps, Progress, Result

# onnxruntime phones home unless this stands in the environment before it is imported.
QUIET = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",  # the same bytes, always
    "PYTHONDONTWRITEBYTECODE": "1",
}
NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000  # of unshare(2)
MAX_LINE = 4096
TAIL = 600
POLL_S = 1.0

KeepGoing = Callable[[Progress | None], None]
"""Called at least every `POLL_S` seconds, with news or None; raises to stop the child."""


def environment(folder: Path) -> dict[str, str]:
    """Return all that a child sees: no settings, no credentials, a home that is thrown away."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
    python = os.pathsep.join(path for path in sys.path if path)
    scratch = str(folder)
    return {**kept, **QUIET, "PYTHONPATH": python, "HOME": scratch, "TMPDIR": scratch}


def run(module: str, folder: Path, *, timeout_s: float, keep_going: KeepGoing) -> Result:
    """Run ``python -m module folder`` until it ends, and return what it wrote.

    Raises:
        BuildError: it died, ran out of time, or answered nonsense; the message says which.
    """
    deadline = time.monotonic() + timeout_s
    with (folder / files.LOG).open("wb") as log, _started(module, folder, log) as child:
        for line in _lines(child, deadline):
            if time.monotonic() > deadline:
                raise BuildError(
                    f"took longer than {timeout_s:g} seconds (build_time_limit_s); stopped"
                )
            keep_going(_progress(line) if line else None)
        code = child.wait()
    if code != 0:
        raise BuildError(_obituary(code, folder))
    try:
        return files.read_result(folder / files.RESULT)
    except (OSError, ValueError) as error:
        raise BuildError(f"the build process left no readable result: {error}") from error


@contextlib.contextmanager
def _started(module: str, folder: Path, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    # Its standard input stays open as long as we live: at its end the child ends itself.
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(folder)],  # -P: no code from the folder
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=folder,
        env=environment(folder),
        start_new_session=True,
    ) as child:
        try:
            yield child
        finally:
            # The whole group, and also after a good end: nothing may be left running.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _lines(child: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    """Yield lines of output, and an empty one whenever there was none for a while."""
    assert child.stdout is not None  # noqa: S101 - we asked for a pipe
    held = b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(child.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if not waiting.select(max(0.0, min(POLL_S, left))):
                yield b""
                continue
            chunk = os.read(child.stdout.fileno(), MAX_LINE)
            if not chunk:
                return
            *whole, held = (held + chunk).split(b"\n")
            yield from whole or [b""]
            held = held[-MAX_LINE:]


def _progress(line: bytes) -> Progress | None:
    try:
        return msgspec.json.decode(line, type=Progress)
    except msgspec.MsgspecError:
        return None


def _obituary(code: int, folder: Path) -> str:
    log = (folder / files.LOG).read_bytes()[-TAIL:].decode(errors="replace").strip()
    last = log.splitlines()[-1] if log else "it said nothing"
    if code == -signal.SIGXCPU:
        return "the build process used more processor time than it may (build_time_limit_s)"
    if code < 0:
        name = signal.Signals(-code).name
        return f"the build process was killed by {name}, perhaps out of memory: {last}"
    return f"the build process failed with code {code}: {last}"


def confine(caps: Caps) -> None:
    """Limit this process and what it starts, and end the group when the parent is gone."""
    for kind, most in (
        (resource.RLIMIT_AS, caps.memory_mb * 1024**2),
        (resource.RLIMIT_CPU, caps.cpu_s),
        (resource.RLIMIT_FSIZE, caps.file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        # macOS refuses some kinds; the time limit and the private folder hold there too.
        with contextlib.suppress(ValueError, OSError):
            hard = resource.getrlimit(kind)[1]
            soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (soft, hard))
    _leave_the_network()
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _leave_the_network() -> None:
    """Move to an empty network namespace, where Linux lets us; must come before any thread."""
    if sys.platform != "linux":
        return
    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    if unshare is not None and unshare(NEW_NETWORK) != 0:
        unshare(NEW_USER | NEW_NETWORK)


def _die_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def say(stream: int, progress: Progress) -> None:
    """Tell the parent, on a copy of standard output that libraries cannot write to."""
    os.write(stream, msgspec.json.encode(progress) + b"\n")


def progress_stream() -> int:
    """Return that copy; what libraries print goes to the log from now on."""
    stream = os.dup(1)
    os.dup2(2, 1)
    return stream
