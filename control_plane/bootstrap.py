"""The composition root: builds the parts, opens scopes, and is where the server reads the clock."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property

from control_plane.blobs import BlobStore
from control_plane.config import Settings
from control_plane.services.scope import Scope
from control_plane.signing.keyring import Keyring
from control_plane.store.database import Database


def utc_now() -> datetime:
    """Return the time, aware."""
    return datetime.now(UTC)  # noqa: TID251 - the one place


class Application:
    """One process's parts, made on first use and shared by its threads."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()

    def open(self) -> "Application":
        """Make every part now, before threads share this: a part must not be made twice."""
        _ = self.database, self.keyring, self.blobs
        return self

    @cached_property
    def database(self) -> Database:
        if self.settings.database_url == "":
            self.settings.data.mkdir(parents=True, exist_ok=True)
        settings = self.settings
        return Database(settings.sqlalchemy_url, read_limit_s=settings.read_limit_s)

    @cached_property
    def keyring(self) -> Keyring:
        return Keyring.open(self.settings.keys_folder)

    @cached_property
    def blobs(self) -> BlobStore:
        return BlobStore(self.settings.blobs)

    @contextmanager
    def scope(self, actor: str) -> Iterator[Scope]:
        """Open a transaction for one use case; commits at the end, rolls back on an error."""
        with self.database.transaction() as tx:
            yield Scope(tx, utc_now(), actor, self.keyring, self.blobs, self.settings, _new_id)

    @contextmanager
    def reading(self, actor: str) -> Iterator[Scope]:
        """Open a scope that only reads, and only for so long."""
        with self.database.reading() as tx:
            yield Scope(tx, utc_now(), actor, self.keyring, self.blobs, self.settings, _new_id)

    @contextmanager
    def rehearsing(self, actor: str) -> Iterator[Scope]:
        """Open a scope whose changes are taken back at its end."""
        with self.database.rehearsing() as tx:
            yield Scope(tx, utc_now(), actor, self.keyring, self.blobs, self.settings, _new_id)

    def close(self) -> None:
        """Give back connections."""
        if "database" in self.__dict__:
            self.database.close()


def _new_id() -> str:
    return uuid.uuid4().hex
