"""The control plane's parts on a database in memory, and the faults of its transactions."""

import gc
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import exc

from agent.protocol import envelope
from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.services.scope import Scope
from control_plane.store import migrate
from control_plane.store.database import Database, Transaction
from tests.simulation import bundles, seeding
from tests.simulation.agenda import Agenda
from tests.simulation.chance import Chance
from tests.simulation.errors import KilledError

LOST = "the connection is lost"


class MemoryDatabase(Database):
    """One SQLite database in memory; `reset` brings it back to the template."""

    def __init__(self) -> None:
        super().__init__("sqlite://")
        # One thread, so the pool has one connection, which is the database.
        borrowed = self.engine.raw_connection()
        self.raw: sqlite3.Connection = borrowed.driver_connection  # type: ignore[assignment]  # sqlite's
        borrowed.close()
        self._connection = self.engine.connect()
        self._template = _template()
        # What is imported by now stays: a seed's garbage is not looked for among it.
        gc.collect()
        gc.freeze()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        with self._connection.begin():
            yield Transaction(self._connection)

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        try:
            yield Transaction(self._connection)
        finally:
            self._connection.rollback()

    def reset(self) -> None:
        """Forget everything of the last seed."""
        self._template.backup(self.raw)


def _template() -> sqlite3.Connection:
    """Return a migrated database with blueprints, model versions and their bundles."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        migrate.upgrade(f"sqlite:///{path}")
        database = Database(f"sqlite:///{path}")
        with database.transaction() as tx:
            seeding.models(tx)
        database.close()
        on_disk = sqlite3.connect(path)
        template = sqlite3.connect(":memory:")
        on_disk.backup(template)
        on_disk.close()
    return template


class SimulatedKeyring:
    """Signs by a checksum: real envelopes, no cryptography, since keys are a port here."""

    def sign_order(self, payload: bytes) -> bytes:
        return bundles.sign(envelope.ORDER_TYPE, payload)

    def sign_manifest(self, payload: bytes) -> bytes:
        return bundles.sign(envelope.MANIFEST_TYPE, payload)


class SimulatedApplication(Application):
    """One process's parts: the shared database, the simulated clock, and what goes wrong.

    Args:
        database: shared by all processes.
        settings: of this process.
        agenda: the clock.
        chance: the draws.
        kind: which faults are its: gateway, scheduler or people.
        committed: told after every commit, before anybody else can act.
    """

    def __init__(
        self,
        database: MemoryDatabase,
        settings: Settings,
        agenda: Agenda,
        chance: Chance,
        *,
        kind: str,
        committed: Callable[[], None],
    ) -> None:
        super().__init__(settings)
        self.__dict__["database"] = database
        self.__dict__["keyring"] = SimulatedKeyring()
        self.__dict__["blobs"] = None
        self._agenda = agenda
        self._chance = chance
        self._kind = kind
        self._committed = committed
        self._ids = 0

    @contextmanager
    def scope(self, actor: str) -> Iterator[Scope]:
        fate = self._fate()
        with self.database.transaction() as tx:
            if fate == "outage":
                raise _outage()
            yield self._scope(tx, actor)
            if fate == "killed before commit":
                raise KilledError
            if fate == "outage before commit":
                raise _outage()
        self._committed()
        if fate == "killed after commit":
            raise KilledError
        if fate == "outage after commit":
            raise _outage()

    @contextmanager
    def reading(self, actor: str) -> Iterator[Scope]:
        with self.database.reading() as tx:
            yield self._scope(tx, actor)

    def _scope(self, tx: Any, actor: str) -> Scope:
        return Scope(
            tx, self._agenda.date, actor, self.keyring, self.blobs, self.settings, self._new_id
        )

    def _new_id(self) -> str:
        self._ids += 1
        return f"{self._kind}-{self.settings.gateway_name}-{self._ids}"[:36]

    def _fate(self) -> str:
        if self._kind != "people" and self._chance.happens(f"{self._kind}_kill"):
            return self._chance.pick("fate", ("killed before commit", "killed after commit"))
        if self._chance.happens("outage"):
            return self._chance.pick(
                "fate", ("outage", "outage before commit", "outage after commit")
            )
        return ""


def _outage() -> exc.OperationalError:
    """Return what a driver says when the server is gone."""
    return exc.OperationalError("COMMIT", {}, sqlite3.OperationalError(LOST))


def is_drawn(error: Exception) -> bool:
    """Return whether an outage is one of ours, and no mistake in a statement."""
    return LOST in str(error)
