"""Forks server processes that have everything imported: a start costs milliseconds, not a second.

``python -m tests.chaos.nursery`` reads a line of JSON for each (words, env, log, plant) and answers
with its process id. What it forks is what ``flotilla WORDS`` would be. When its input ends, it
ends, and all of them with it.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, Self

ROOT = Path(__file__).parents[2]
IMPORTED = (
    "celery.apps.worker",
    "kombu.transport.redis",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "control_plane.gateway.courier",
    "control_plane.gateway.main",
    "control_plane.jobs.scheduler",
    "control_plane.jobs.worker",
)
"""What the servers import when they start."""


class Nursery:
    """The forking process, seen from outside; a context manager."""

    def __init__(self) -> None:
        self._process = Popen(
            [sys.executable, "-m", "tests.chaos.nursery"], cwd=ROOT, stdin=PIPE, stdout=PIPE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def fork(self, words: list[str], env: dict[str, str], log: Path, plant: str = "") -> int:
        """Start ``flotilla WORDS`` and return its process id.

        Args:
            words: the command line.
            env: added to our environment.
            log: where its output goes.
            plant: a planted fault (planted.py).
        """
        asked = {"words": words, "env": env, "log": str(log), "plant": plant}
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(asked).encode() + b"\n")
        stdin.flush()
        return int(stdout.readline())


def alive(pid: int) -> bool:
    """Return whether a forked process still runs; the nursery leaves no zombies."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    """Fork what is asked for until the input ends."""
    # Only here, not in who imports us.
    from control_plane.cli import main as command  # noqa: PLC0415
    from tests.chaos import planted  # noqa: PLC0415

    for name in IMPORTED:
        import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to who asked us
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    born: list[int] = []
    try:
        for asked in _lines():
            pid = os.fork()
            if pid == 0:
                plant = planted.PLANTED[asked["plant"]]() if asked["plant"] else nullcontext()
                os._exit(_live(asked, plant, command.main))
            born.append(pid)
            print(pid, flush=True)
    finally:
        for pid in born:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _lines() -> Iterator[dict[str, Any]]:
    """Yield what is asked; unbuffered, since a child must not inherit what was read ahead."""
    with os.fdopen(0, "rb", buffering=0, closefd=False) as stdin:
        while line := stdin.readline():
            yield json.loads(line)


def _live(asked: dict[str, Any], plant: AbstractContextManager[None], run: Any) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(asked["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(asked["env"])
    sys.argv = ["flotilla", *asked["words"]]
    try:
        with plant:
            run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - what a Python process does at its end
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    main()
