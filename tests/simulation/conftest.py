"""One database in memory for all seeds of a test process."""

import pytest

from tests.simulation.application import MemoryDatabase


@pytest.fixture(scope="session")
def memory() -> MemoryDatabase:
    return MemoryDatabase()
