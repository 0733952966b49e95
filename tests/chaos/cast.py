"""The processes of a control plane that can be killed: services, gateways, schedulers, workers."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from shutil import rmtree

from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.local.mosquitto import GATEWAYS
from control_plane.local.supervisor import environment
from tests.chaos.nursery import Nursery, alive
from tests.chaos.planted import A_DATABASE_THAT_FORGETS
from tests.support import databases, services
from tests.support.fleet_stack import GATEWAY_PASSWORD, PlainBroker
from tests.support.services import Service

KINDS = ("gateway", "scheduler", "worker", "database", "broker", "queue")
EACH = 2
"""Gateways, schedulers and workers at once."""
TICK_S = 0.2
READY_S = 30.0
_READY = {
    "gateway": "gateway.connected",
    "scheduler": "scheduler.started",
    "worker": "worker.started",
}


@dataclass
class Role:
    """One server process over its lives."""

    name: str
    kind: str
    words: list[str]
    env: dict[str, str]
    log: Path
    pid: int = 0

    @property
    def alive(self) -> bool:
        return self.pid > 0 and alive(self.pid)

    @property
    def ready(self) -> bool:
        """Whether its last life has come as far as to work."""
        return _READY[self.kind] in self.log.read_text(errors="replace")


@dataclass
class Cast:
    """Everything that runs, on one database."""

    app: Application
    roles: list[Role]
    services: Mapping[str, Service]
    """Database (not for SQLite), broker and queue."""
    broker: PlainBroker
    nursery: Nursery
    plant: str = ""
    ended: dict[str, int] = field(default_factory=dict)
    """How often a process of a kind ended by itself."""

    @property
    def port(self) -> int:
        return self.app.settings.mqtt_port

    def admit(self, passwords: dict[str, str]) -> None:
        """Tell the broker the devices' passwords."""
        self.broker.admit(passwords)

    def victims(self, kind: str, chance: Random) -> list[str]:
        """Choose whom a kill of this kind takes; of SQLite whoever has the file open."""
        if kind in self.services:
            return [kind]
        if kind == "database":
            return [role.name for role in self.roles if role.kind in {"gateway", "worker"}]
        return [chance.choice([role.name for role in self.roles if role.kind == kind])]

    def kill(self, name: str) -> None:
        """End one with SIGKILL."""
        if name in self.services:
            self.services[name].kill()
        else:
            role = self._role(name)
            with suppress(ProcessLookupError):
                os.kill(role.pid, signal.SIGKILL)
            while role.alive:
                time.sleep(0.001)  # it is not our child, to wait for

    def freeze(self, name: str) -> int:
        """Stop one with SIGSTOP; return what `thaw` takes."""
        service = self.services.get(name)
        pid = self._role(name).pid if service is None else service.pid
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        return pid

    @staticmethod
    def thaw(pid: int) -> None:
        """Let one go on as if nothing had happened, if it was not killed meanwhile."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def revive(self) -> None:
        """Start whatever does not run."""
        for service in self.services.values():
            if service.process is None or service.process.poll() is not None:
                service.start()
        for role in self.roles:
            if not role.alive:
                self._spawn(role)

    def count_ended(self) -> None:
        """Note which processes have ended although nobody killed them."""
        for role in self.roles:
            if not role.alive:
                self.ended[role.kind] = self.ended.get(role.kind, 0) + 1

    def wait_ready(self) -> None:
        """Wait until every server works."""
        give_up = time.monotonic() + READY_S
        for role in self.roles:
            while not role.ready:
                said = role.log.read_text(errors="replace")[-2000:]
                assert time.monotonic() < give_up, f"{role.name} does not start:\n{said}"
                time.sleep(0.02)  # a log tells nobody that it grew

    def logs(self) -> str:
        """Return the last words of every server."""
        tails = [(role.name, role.log.read_text(errors="replace")[-1500:]) for role in self.roles]
        return "\n".join(f"--- {name}\n{tail}" for name, tail in tails)

    def _spawn(self, role: Role) -> None:
        role.log.write_text("")
        role.pid = self.nursery.fork(role.words, role.env, role.log, self.plant)

    def _role(self, name: str) -> Role:
        return next(role for role in self.roles if role.name == name)


@contextmanager
def cast(database: str, plant: str = "") -> Iterator[Cast]:
    """Start the services and prepare the servers, which `revive` starts.

    Args:
        database: sqlite or postgresql.
        plant: a planted fault (planted.py), in every server or in the database.
    """
    forgets = plant == A_DATABASE_THAT_FORGETS
    with ExitStack() as stack:
        nursery = stack.enter_context(Nursery())  # it imports while the services start
        folder = Path(tempfile.mkdtemp(prefix="flotilla-chaos-"))
        stack.callback(rmtree, folder, ignore_errors=True)
        broker = PlainBroker(folder)
        running: dict[str, Service] = {"broker": broker.service, "queue": services.redis()}
        url = f"sqlite:///{folder / 'flotilla.db'}"
        if database == "postgresql":
            server = services.postgresql(killable=not forgets)
            running["database"], url = server, server.url()
        for service in running.values():
            stack.callback(service.discard)
            service.start()
        databases.create_schema(url)
        settings = _settings(folder, url, running)
        app = Application(settings).open()
        stack.callback(app.close)
        yield Cast(
            app, list(_roles(settings, folder)), running, broker, nursery, "" if forgets else plant
        )


def _settings(folder: Path, url: str, running: Mapping[str, Service]) -> Settings:
    return Settings(
        data=folder,
        database_url=url,
        queue_url=f"redis://127.0.0.1:{running['queue'].port}/0",
        mqtt_port=running["broker"].port,
        mqtt_password=GATEWAY_PASSWORD,
        share_group="chaos",
        tick_s=TICK_S,
    )


def _roles(settings: Settings, folder: Path) -> Iterator[Role]:
    for kind in ("gateway", "scheduler", "worker"):
        for number in range(EACH):
            own = {"gateway_name": GATEWAYS[number], "mqtt_username": GATEWAYS[number]}
            whole = environment(settings.model_copy(update=own if kind == "gateway" else {}))
            env = {key: value for key, value in whole.items() if key.startswith("FLOTILLA_")}
            name = f"{kind}-{number}"
            yield Role(name, kind, ["server", kind], env, folder / f"{name}.log")
