"""Fixtures for every tier: private services, empty databases, an application on them."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.signing.keyring import Keyring
from control_plane.store.database import Database
from tests.support import databases, services
from tests.support.brokers import MutualBroker

_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("dev", max_examples=100, deadline=None, suppress_health_check=_SLOW)
settings.register_profile(
    "ci", max_examples=200, derandomize=True, deadline=None, suppress_health_check=_SLOW
)
settings.register_profile("nightly", max_examples=5000, deadline=None, suppress_health_check=_SLOW)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


@pytest.fixture(scope="session")
def postgres() -> Iterator[services.PostgreSQL]:
    """A running PostgreSQL that holds the template database."""
    server = services.postgresql()
    try:
        server.start()
        databases.postgres_template(server)
        yield server
    finally:
        server.discard()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[services.Redis]:
    """A running Redis."""
    server = services.redis()
    try:
        yield server.start()
    finally:
        server.discard()


@pytest.fixture(scope="session")
def mosquitto() -> Iterator[services.Service]:
    """A running Mosquitto without TLS, open to anyone on this machine."""
    server = services.mosquitto()
    try:
        yield server.start()
    finally:
        server.discard()


@pytest.fixture
def mutual_broker() -> Iterator[Callable[[Keyring], MutualBroker]]:
    """Start a Mosquitto with mutual TLS and the fleet's ACL for a keyring."""
    started: list[MutualBroker] = []

    def start(keyring: Keyring) -> MutualBroker:
        broker = MutualBroker(keyring)
        started.append(broker)
        broker.service.start()
        return broker

    try:
        yield start
    finally:
        for broker in started:
            broker.service.discard()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database with the newest schema."""
    return databases.sqlite_template(tmp_path_factory.mktemp("sqlite"))


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh SQLite database."""
    return databases.sqlite_copy(sqlite_template, tmp_path)


@pytest.fixture
def postgres_url(postgres: services.PostgreSQL) -> Iterator[str]:
    """A fresh PostgreSQL database."""
    name = databases.postgres_clone(postgres)
    yield postgres.url(name)
    databases.postgres_drop(postgres, name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh database of each kind in turn."""
    fixture = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(fixture)
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh, migrated, empty database of each kind in turn."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def app(database_url: str, tmp_path: Path) -> Iterator[Application]:
    """An application on a fresh database of each kind in turn."""
    application = Application(Settings(data=tmp_path / "data", database_url=database_url))
    yield application
    application.close()


@pytest.fixture
def sqlite_app(sqlite_url: str, tmp_path: Path) -> Iterator[Application]:
    """An application on a fresh SQLite database only, where the kind does not matter."""
    application = Application(Settings(data=tmp_path / "data", database_url=sqlite_url))
    yield application
    application.close()


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    """A fleet's keys."""
    return Keyring.open(tmp_path / "keys")
