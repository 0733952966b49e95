"""Private PostgreSQL, Redis and Mosquitto on free loopback ports: start, stop, kill, restart."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

START_S = 60.0
STOP_S = 20.0
SERVER_PORTS = range(20_000, 32_000)  # Linux deals out those from 32,768, macOS from 49,152
PACKAGES = {
    "postgres": "postgresql",
    "initdb": "postgresql",
    "pg_isready": "postgresql",
    "redis-server": "redis-server",
    "mosquitto": "mosquitto",
}
_AM_ROOT = os.getuid() == 0


class MissingServiceError(AssertionError):
    """A program that the tests need is not installed; a failure, never a skip."""


def find(name: str) -> str:
    """Return the path of a server program, also from places that are not on a user's PATH."""
    places = [Path("/usr/sbin"), Path("/usr/local/sbin"), Path("/opt/homebrew/sbin")]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / name).exists():
            return str(place / name)
    if found := shutil.which(name):
        return found
    raise MissingServiceError(
        f"{name} is not installed; on Debian: apt-get install {PACKAGES.get(name, name)}"
    )


def free_port() -> int:
    """Return a loopback port that nobody listens on, and that no connection out will be given.

    A server that is restarted needs its port again: so it is below those that the kernel deals out.
    """
    while True:
        port = secrets.choice(SERVER_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def answers(port: int) -> bool:
    """Return whether somebody listens on a loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), 0.3).close()
    except OSError:
        return False
    return True


class Service:
    """One server process with its folder; the same port and data over restarts.

    Args:
        argv: the command.
        port: where it listens.
        folder: its data; removed by `discard`.
        ready: whether it serves yet.
        user: run as, when the tests run as root.
        stop_signal: asks for a clean end.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        port: int,
        folder: Path,
        ready: Callable[[], bool] | None = None,
        user: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.argv = list(argv)
        self.port = port
        self.folder = folder
        self.log = folder / "service.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._ready = ready or (lambda: answers(port))
        self._user = user
        self._stop_signal = stop_signal

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> Self:
        """Start and wait until it serves."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                start_new_session=True,
                **_as_user(self._user),
            )
        give_up = time.monotonic() + START_S
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise RuntimeError(f"{self.argv[0]} did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)  # the only way to watch a process that does not tell when it is ready
        return self

    def stop(self) -> None:
        """End it in its own way."""
        self._end(self._stop_signal)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def restart(self, *, crash: bool = False) -> Self:
        """Stop, or crash, and start again on the same data and port."""
        if crash:
            self.kill()
        else:
            self.stop()
        return self.start()

    @contextmanager
    def frozen(self) -> Iterator[Self]:
        """Hang it: connections open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield self
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def discard(self) -> None:
        """Stop and remove the data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class PostgreSQL(Service):
    """A private cluster; `url(name)` is SQLAlchemy's for one of its databases."""

    def url(self, name: str = "postgres") -> str:
        return f"postgresql+psycopg://flotilla@127.0.0.1:{self.port}/{name}"

    def kill(self) -> None:
        """End every process of the server at once; those of a dead one finish their statement."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGSTOP)  # it must not start another one meanwhile
        for pid in [self.pid, *_children(self.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Redis(Service):
    """A private Redis with an append-only file."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"


def postgresql(copy_of: Path | None = None, *, killable: bool = False) -> PostgreSQL:
    """Make a cluster (not started); durability is off, for speed.

    Args:
        copy_of: the data of a stopped one, to begin with; None: an empty one.
        killable: what it has committed survives `kill`, though not a power cut.
    """
    user = "postgres" if _AM_ROOT else None  # initdb and postgres refuse root
    folder = _folder("postgres", user)
    port = free_port()
    data = str(folder / "data")
    make = [find("initdb"), "-D", data, "-U", "flotilla", "-A", "trust", "--no-sync"]
    make += ["--locale=C", "-E", "UTF8"]
    subprocess.run(
        make if copy_of is None else ["cp", "-R", str(copy_of), data],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=folder,
        **_as_user(user),
    )
    is_ready = [find("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    argv = [find("postgres"), "-D", data, "-p", str(port)]
    for option in (
        "listen_addresses=127.0.0.1",
        f"unix_socket_directories={folder}",
        "max_connections=200",
        "fsync=off",
        *(() if killable else ("synchronous_commit=off", "full_page_writes=off")),
    ):
        argv += ["-c", option]
    return PostgreSQL(
        argv,
        port=port,
        folder=folder,
        user=user,
        # The port opens before the server takes queries.
        ready=lambda: subprocess.run(is_ready, check=False).returncode == 0,
        stop_signal=signal.SIGINT,
    )


def redis() -> Redis:
    """Make a Redis (not started)."""
    folder = _folder("redis")
    port = free_port()
    options = ["--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "yes"]
    return Redis([find("redis-server"), "--port", str(port), *options], port=port, folder=folder)


def mosquitto(configuration: str = "allow_anonymous true\n") -> Service:
    """Make a Mosquitto (not started); its data survives a crash.

    Args:
        configuration: what follows the listener line, which has a free loopback port.
    """
    folder = _folder("mosquitto")
    port = free_port()
    lines = [
        f"listener {port} 127.0.0.1",
        configuration,
        "persistence true",
        f"persistence_location {folder}/",
        "autosave_interval 1",
        "autosave_on_changes true",
    ]
    if "max_queued_messages" not in configuration:
        # Not 0 for "no limit": Mosquitto 2.0.11 then disconnects whoever the ACL refuses.
        lines.append("max_queued_messages 200000")
    if _AM_ROOT:
        lines.append("user root")  # else it becomes a user who cannot read this folder
    path = folder / "mosquitto.conf"
    path.write_text("\n".join(lines) + "\n")
    return Service([find("mosquitto"), "-c", str(path)], port=port, folder=folder)


def _children(pid: int) -> list[int]:
    if (known := Path(f"/proc/{pid}/task/{pid}/children")).exists():  # of Linux
        return list(map(int, known.read_text().split()))
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True)
    pairs = (line.split() for line in listed.stdout.decode().splitlines())
    return [int(child) for child, parent in pairs if int(parent) == pid]


def _folder(name: str, user: str | None = None) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"flotilla-{name}-"))
    folder.chmod(0o755)
    if user:
        shutil.chown(folder, user, user)
    return folder


def _as_user(user: str | None) -> dict[str, Any]:
    return {"user": user, "group": user, "extra_groups": []} if user else {}
