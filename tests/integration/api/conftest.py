from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from control_plane.bootstrap import Application
from tests.integration.api.support import api_token, client_of


@pytest.fixture
def stranger(sqlite_app: Application) -> Iterator[TestClient]:
    """A client without a token."""
    with client_of(sqlite_app) as client:
        yield client


@pytest.fixture
def client(sqlite_app: Application) -> Iterator[TestClient]:
    """A client that is known as ada."""
    with client_of(sqlite_app, api_token(sqlite_app)) as client:
        yield client


@pytest.fixture
def both(app: Application) -> Iterator[TestClient]:
    """A client that is known as ada, on each kind of database in turn."""
    with client_of(app, api_token(app)) as client:
        yield client
