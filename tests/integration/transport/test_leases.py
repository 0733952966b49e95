"""The leases: who holds what, however many try."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from control_plane.store import leases
from control_plane.store.database import Database

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOON = NOW + timedelta(seconds=10)
LATER = NOW + timedelta(seconds=11)


def test_a_lease_has_one_holder_who_may_prolong_it(database: Database) -> None:
    with database.transaction() as tx:
        assert leases.take(tx, "tick", "a", now=NOW, until=SOON) == 1
        assert leases.take(tx, "tick", "b", now=NOW, until=SOON) is None
        assert leases.take(tx, "tick", "a", now=NOW, until=SOON + timedelta(seconds=9)) == 1
        assert leases.take(tx, "tick", "b", now=LATER, until=LATER) is None
        assert leases.holder(tx, "tick", LATER) == "a"


def test_every_change_of_holder_raises_the_epoch(database: Database) -> None:
    with database.transaction() as tx:
        leases.take(tx, "tick", "a", now=NOW, until=SOON)
        assert leases.take(tx, "tick", "b", now=LATER, until=LATER) == 2
        leases.give_back(tx, "tick", "a")
        assert leases.holder(tx, "tick", LATER) == "b"
        leases.give_back(tx, "tick", "b")
        assert leases.holder(tx, "tick", NOW) == ""
        assert leases.take(tx, "tick", "a", now=NOW, until=SOON) == 3


def test_of_many_who_want_a_lease_one_gets_it(database: Database) -> None:
    def take(number: int) -> int | None:
        with database.transaction() as tx:
            return leases.take(tx, "tick", f"holder-{number}", now=NOW, until=SOON)

    with ThreadPoolExecutor(8) as pool:
        epochs = list(pool.map(take, range(8)))
    assert [epoch for epoch in epochs if epoch is not None] == [1]
