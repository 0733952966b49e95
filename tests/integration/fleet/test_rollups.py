"""The fleet's counts equal its rows, whatever happens to devices, in any order and at once."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, select, update

from control_plane.domain.device import ACTIVE, QUARANTINED, DeviceId, health_of
from control_plane.store import devices, migrate, rollups, schema
from control_plane.store.database import Database, Transaction
from control_plane.store.devices import Registration

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
NAMES = ["edge-1", "edge-2", "edge-3"]
BLUEPRINTS = [None, "pi", "nuc"]
DIGESTS = ["", "a" * 64, "b" * 64]
SITES = [None, "vie", "fra"]

Act = Callable[[Transaction], object]


def _register(tx: Transaction, name: str, blueprint: str | None) -> None:
    new = Registration(DeviceId(name), ACTIVE, blueprint, {}, name, "1")
    devices.register(tx, new, NOW)


def _report(
    tx: Transaction,
    name: str,
    *,
    online: bool = True,
    healthy: bool = True,
    digest: str = "",
    blueprint: str | None = None,
    minutes: int = 0,
) -> None:
    """Report as the inbox does: lock, compute, save."""
    known = devices.lock(tx, [name])
    if name not in known:
        return
    row = known[name].reported._replace(
        online=online,
        healthy=healthy,
        digest=digest,
        blueprint=blueprint,
        last_seen_at=NOW + timedelta(minutes=minutes),
    )
    devices.save_reported(tx, known, {name: row})


def _site(tx: Transaction, name: str, site: str | None) -> None:
    if devices.exists(tx, name):
        devices.set_labels(tx, DeviceId(name), {"site": site, "rack": "4"})


names = st.sampled_from(NAMES)
acts = st.one_of(
    st.tuples(names, st.sampled_from(BLUEPRINTS)).map(lambda a: lambda tx: _register(tx, *a)),
    st.tuples(names, st.sampled_from(SITES)).map(lambda a: lambda tx: _site(tx, *a)),
    st.tuples(names, st.sampled_from([ACTIVE, QUARANTINED])).map(
        lambda a: lambda tx: devices.set_state(tx, DeviceId(a[0]), a[1])
    ),
    st.builds(
        lambda name, **said: lambda tx: _report(tx, name, **said),
        names,
        online=st.booleans(),
        healthy=st.booleans(),
        digest=st.sampled_from(DIGESTS),
        blueprint=st.sampled_from(BLUEPRINTS),
        minutes=st.integers(0, 60),
    ),
    st.integers(0, 60).map(
        lambda age: lambda tx: devices.sweep(tx, NOW + timedelta(minutes=age), limit=2)
    ),
    names.map(lambda name: lambda tx: devices.touch(tx, [name], NOW + timedelta(minutes=30))),
    st.integers(1, 9).map(lambda limit: lambda tx: rollups.fold(tx, limit)),
)


def _clear(database: Database) -> None:
    with database.transaction() as tx:
        for table in (schema.device, schema.fleet_count, schema.fleet_delta):
            tx.execute(delete(table))


def _naive(tx: Transaction) -> dict[str, dict[str, int]]:
    """Count the fleet a device at a time, in Python."""
    found: dict[str, dict[str, int]] = {}
    for row in tx.execute(select(schema.device)):
        word = health_of(state=row.state, online=row.online, healthy=row.healthy)
        for facet, value in (
            ("state", row.state),
            ("health", word),
            ("online", "true" if row.online else "false"),
            ("blueprint", row.blueprint or ""),
            ("digest", row.digest),
        ):
            cells = found.setdefault(facet, {})
            cells[value] = cells.get(value, 0) + 1
    return found


@settings(max_examples=60)
@given(st.lists(acts, max_size=25))
def test_counts_equal_rows_after_any_changes(database: Database, changes: list[Act]) -> None:
    _clear(database)
    for change in changes:
        with database.transaction() as tx:
            change(tx)
    with database.reading() as tx:
        assert rollups.drift(tx) == {}
        assert rollups.read(tx) == _naive(tx)
        wanted = select(schema.device_label.c.value, func.count())
        wanted = wanted.where(schema.device_label.c.key == "site").group_by("value")
        assert rollups.sites(tx, 9) == {row[0]: row[1] for row in tx.execute(wanted)}


def test_a_change_that_is_taken_back_is_not_counted(database: Database) -> None:
    def enrol_and_fail() -> None:
        with database.transaction() as tx:
            _register(tx, "edge-1", "pi")
            raise LookupError

    with pytest.raises(LookupError):
        enrol_and_fail()
    with database.reading() as tx:
        assert rollups.read(tx) == {}


def test_many_gateways_labels_sweeps_and_folds_at_once_count_right(database: Database) -> None:
    everybody = [f"edge-{number}" for number in range(12)]
    with database.transaction() as tx:
        for name in everybody:
            _register(tx, name, "pi")
    chance = random.Random(7)

    def at_once(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(15):
            with database.transaction() as tx:
                match mine.randrange(6):
                    case 0:
                        _site(tx, mine.choice(everybody), mine.choice(SITES))
                    case 1:
                        devices.sweep(tx, NOW + timedelta(minutes=mine.randrange(60)), limit=3)
                    case 2:
                        rollups.fold(tx, 5)
                    case 3:
                        name = DeviceId(mine.choice(everybody))
                        devices.set_state(tx, name, mine.choice([ACTIVE, QUARANTINED]))
                    case _:
                        _report(
                            tx,
                            mine.choice(everybody),
                            online=mine.random() < 0.7,
                            digest=mine.choice(DIGESTS),
                            blueprint=mine.choice(BLUEPRINTS),
                            minutes=mine.randrange(60),
                        )

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(at_once, [chance.randrange(1 << 30) for _ in range(6)]))
    with database.reading() as tx:
        assert rollups.drift(tx) == {}
        assert sum(rollups.read(tx)["state"].values()) == len(everybody)


def test_folding_changes_no_count_and_leaves_no_empty_cell(database: Database) -> None:
    with database.transaction() as tx:
        _register(tx, "edge-1", "pi")
        _report(tx, "edge-1", digest=DIGESTS[1], blueprint="nuc")
        before = rollups.read(tx)
        while rollups.fold(tx, 3):
            assert rollups.read(tx) == before
        cells = tx.execute(select(schema.fleet_count.c.value, schema.fleet_count.c.n)).all()
        assert {row.n for row in cells} == {1}
        assert "pi" not in {row.value for row in cells}


def test_rows_changed_behind_our_back_are_found_and_put_right(database: Database) -> None:
    with database.transaction() as tx:
        _register(tx, "edge-1", "pi")
        rollups.fold(tx, 100)
        tx.execute(update(schema.device).values(blueprint="nuc"))
        tx.execute(insert(schema.device_label).values(device_id="edge-1", key="site", value="vie"))
        assert rollups.drift(tx) == {
            ("blueprint", "pi"): -1,
            ("blueprint", "nuc"): 1,
            ("site", "vie"): 1,
        }
        assert rollups.repair(tx) == 3
        assert rollups.drift(tx) == {}
        assert rollups.read(tx)["blueprint"] == {"nuc": 1}


def test_the_counts_of_an_old_database_are_made_when_it_is_brought_forward(
    database: Database,
) -> None:
    """What the migration counts with is what the check counts with."""
    with database.transaction() as tx:
        for number, name in enumerate(NAMES):
            _register(tx, name, BLUEPRINTS[number])
            _report(tx, name, digest=DIGESTS[number], blueprint="pi", online=number > 0)
            _site(tx, name, "vie")
        devices.set_state(tx, DeviceId("edge-3"), QUARANTINED)
        before = rollups.read(tx)
        tx.execute(delete(schema.fleet_count))
        tx.execute(delete(schema.fleet_delta))
    migrate.downgrade(database.url, "0007")
    migrate.upgrade(database.url)
    with database.reading() as tx:
        assert rollups.drift(tx) == {}
        assert rollups.read(tx) == before
