"""What tests of the engine share: an empty database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from control_plane.store.database import Database
from control_plane.store.schema import metadata


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/engine.db")
    metadata.create_all(database.engine)
    yield database
    database.close()
