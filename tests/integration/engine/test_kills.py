"""Real processes, killed with SIGKILL while a fleet lives through rollouts: every promise is kept.

A slice of `make chaos` (tests/chaos): two gateways, two schedulers, two workers, their database,
broker and queue; 64 devices that report at once over MQTT, a fifth of it twice and out of order.
"""

import pytest

from tests.chaos.cast import KINDS
from tests.chaos.story import Wish, live

DEVICES = 64


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_kills_lose_nothing_double_nothing_and_let_nothing_through(database: str) -> None:
    outcome = live(Wish(database, seed=3, devices=DEVICES, kills=14, rounds=1, shares=(100,)))

    assert outcome.broken == []
    assert set(outcome.kills) == set(KINDS), "each of them was killed"
    assert outcome.replays > outcome.reports // 5, "and a fifth of all reports came again"
    assert outcome.looks > 0, "counts were compared with rows meanwhile, too"
    assert outcome.offers >= DEVICES + 1, "all were offered the good one, somebody the bad one"
