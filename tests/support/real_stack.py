"""The real stack as compose.yaml wires it, on private services: the same commands, the same names.

PostgreSQL, Redis and a Mosquitto with mutual TLS; API, gateway, worker and scheduler as processes
of their own, started by the commands that the containers run.
"""

import sys
from pathlib import Path
from typing import Self

from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.local import ports
from control_plane.local.children import Child, Supervisor
from control_plane.local.supervisor import environment
from control_plane.services import tokens
from control_plane.signing.keyring import Keyring
from control_plane.store import migrate
from tests.support import services
from tests.support.brokers import MutualBroker

SERVERS = ("api", "gateway", "worker", "scheduler")


class RealStack:
    """A running control plane on real services; a context manager."""

    def __init__(self, data: Path, postgres_url: str, redis_server: services.Redis) -> None:
        self._data = data
        keys = data / "keys"
        self._broker = MutualBroker(Keyring.open(keys))
        port = ports.choose(18080, "127.0.0.1")
        self.settings = Settings(
            data=data,
            database_url=postgres_url,
            queue_url=f"{redis_server.url}/0",
            keys=keys,
            mqtt_host="127.0.0.1",
            mqtt_port=self._broker.port,
            mqtt_tls=True,
            api_port=port,
            share_group="secret-group-of-the-tests",
        )
        self.admin_token = ""
        self._supervisor: Supervisor | None = None

    @property
    def url(self) -> str:
        return self.settings.url

    @property
    def env(self) -> dict[str, str]:
        return environment(self.settings)

    def run_beside(self, child: Child) -> None:
        """Run one more program under the same supervision."""
        assert self._supervisor is not None
        self._supervisor.start(child)

    def __enter__(self) -> Self:
        self._broker.service.start()
        migrate.upgrade(self.settings.sqlalchemy_url)
        app = Application(self.settings)
        with app.scope("test") as scope:
            self.admin_token = tokens.create_api_token(scope, name="test")
        app.close()
        self._supervisor = Supervisor(self._data / "logs")
        try:
            for name in SERVERS:
                self._supervisor.start(self._server(name))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._supervisor is not None:
            self._supervisor.stop()
        self._broker.service.discard()

    def _server(self, name: str) -> Child:
        command = [sys.executable, "-m", "control_plane.cli.main", "server", name]
        if name != "api":
            return Child(name, command, env=self.env)
        ready = f"{self.url}/readyz"
        return Child(name, command, env=self.env, ready=lambda: ports.responds(ready))
