"""Nothing looks at all devices where it must be quick: PostgreSQL's own account of every row read.

Each statement of a tick, of reports coming in, of orders going out, of pages and of the summary is
run with auto_explain, which says how many rows each node of its plan has looked at.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from agent.protocol import messages, topics
from agent.protocol.messages import Event, Heartbeat, Hello
from agent.protocol.words import ExecutionState
from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.jobs import ticks
from control_plane.services import inventory, presence, reports, retention
from control_plane.services.incoming import Incoming
from control_plane.store import fleet_order, outbox, rollups
from control_plane.store.database import Database
from tests.benchmarks import million
from tests.benchmarks.plan import build_all
from tests.integration.engine.conftest import Fleet
from tests.support import databases
from tests.support.services import PostgreSQL

DEVICES = 20_000
MOST = DEVICES // 5
"""Rows that one statement may look at, of a fleet of any size."""
AT_ONCE = 200
E = ExecutionState
FILTERS = (
    'labels.site = "site-0017"',
    'blueprint = "bp-3"',
    'version = "1.4.0"',
    'version = "1.1.0" and online = true',
    "online = true",
    'health != "healthy"',
    'last_seen < ago("7d")',
)
_EXPLAIN = """
LOAD 'auto_explain';
SET auto_explain.log_min_duration = 0;
SET auto_explain.log_analyze = on;
SET auto_explain.log_timing = off;
SET auto_explain.log_format = json;
SET auto_explain.log_level = notice;
SET random_page_cost = 1.1;
"""


@dataclass
class Watch:
    """What the statements of an act have looked at."""

    plans: list[dict[str, Any]] = field(default_factory=list)

    def too_many(self) -> list[str]:
        return [
            f"{n} rows: {plan['Query Text'][:300]}"
            for plan in self.plans
            if (n := _looked_at(plan["Plan"])) > MOST
        ]

    def note(self, diagnostic: Any) -> None:
        said = diagnostic.message_primary or ""
        if "plan:\n" in said:
            self.plans.append(json.loads(said.partition("plan:\n")[2]))


def _looked_at(node: dict[str, Any]) -> int:
    """Return the rows that the scans of a plan have read, kept or not."""
    inner = sum(_looked_at(one) for one in node.get("Plans", []))
    if "Scan" not in node["Node Type"] or "Relation Name" not in node:
        return inner
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    rows = node["Actual Rows"] + sum(node.get(one, 0) for one in removed)
    return inner + int(rows * node["Actual Loops"])


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def large(
    postgres: PostgreSQL, tmp_path_factory: pytest.TempPathFactory, watch: Watch
) -> Iterator[Fleet]:
    """A fleet with a rollout to all of it that runs, on connections that tell their plans."""
    name = databases.postgres_clone(postgres)
    with million.connect(postgres, name) as raw:
        million.load(raw, DEVICES)
    counted = Database(postgres.url(name))
    with counted.transaction() as tx:
        rollups.repair(tx)
    counted.close()
    with million.connect(postgres, name) as raw:
        raw.execute("VACUUM ANALYZE")
    settings = Settings(data=tmp_path_factory.mktemp("data"), database_url=postgres.url(name))
    app = Application(settings)
    made = Fleet(app)
    build_all(made)
    pace = {"max_in_flight": AT_ONCE, "per_minute": 100_000}
    made.create("1.1.0", name="all", waves=[{"name": "all", "percent": 100}], pace=pace)

    @event.listens_for(Engine, "connect")
    def tell(connection: Any, _record: Any) -> None:
        connection.add_notice_handler(watch.note)
        before, connection.autocommit = connection.autocommit, True
        connection.execute(_EXPLAIN)
        connection.autocommit = before

    app.database.close()  # from here on it tells
    made.do("start", "all")
    made.tick()
    yield made
    event.remove(Engine, "connect", tell)
    app.close()
    databases.postgres_drop(postgres, name)


@contextmanager
def looking(watch: Watch) -> Iterator[Watch]:
    watch.plans.clear()
    yield watch
    assert watch.plans
    assert watch.too_many() == []


def _some(large: Fleet, n: int) -> list[tuple[str, str, int, str]]:
    """Return id, device, generation and digest of parts that were offered and not begun."""
    query = (
        "SELECT id, device_id, generation, digest FROM execution WHERE state = 'OFFERED' LIMIT :n"
    )
    with large.scope() as scope:
        return [tuple(row) for row in scope.tx.execute(text(query), {"n": n})]


def _say(large: Fleet, *said: tuple[str, str, Any]) -> None:
    incoming = [
        Incoming(topics.up(topics.DeviceId(device), channel), messages.encode(body))
        for device, channel, body in said
    ]
    with large.scope() as scope:
        applied = reports.apply_batch(scope, incoming)
    assert applied.refused == {}


def test_who_reads_the_whole_fleet_is_found_out(large: Fleet, watch: Watch) -> None:
    watch.plans.clear()
    with large.app.reading("test") as scope:
        scope.tx.execute(text("SELECT count(*) FROM device WHERE hardware ->> 'arch' = 'vax'"))
    assert [line.split(":")[0] for line in watch.too_many()] == [f"{DEVICES} rows"]


@pytest.mark.parametrize("filter_by", ["", *FILTERS])
def test_a_page_reads_a_page(large: Fleet, watch: Watch, filter_by: str) -> None:
    orders = [sign + word for word in fleet_order.ORDERS for sign in ("", "-")]
    for sort in orders if not filter_by else ["name", "-last_seen"]:
        cursor = ""
        for _ in range(2):
            with looking(watch), large.app.reading("test") as scope:
                page = inventory.list_devices(scope, filter=filter_by, sort=sort, cursor=cursor)
            cursor = page.next


def test_the_numbers_of_the_fleet_are_counted_by_nobody_who_asks(
    large: Fleet, watch: Watch
) -> None:
    with looking(watch), large.app.reading("test") as scope:
        assert inventory.fleet_summary(scope).total == DEVICES


def test_a_tick_reads_what_is_in_flight(large: Fleet, watch: Watch) -> None:
    with looking(watch):
        ticks.tick(lambda: large.app.reading("test"), large.scope)
    for part, device, generation, digest in _some(large, 20):
        said = Event(boot=2, seq=1, generation=generation, execution=part, state=E.SUCCEEDED,
                     digest=digest)  # fmt: skip
        _say(large, (device, "events", said))
    large.later(1)
    with looking(watch):
        done = ticks.tick(lambda: large.app.reading("test"), large.scope)
    assert done.offered == 20


def test_reports_read_the_devices_that_report(large: Fleet, watch: Watch) -> None:
    steps = (E.DOWNLOADING, E.STAGED, E.BENCHMARKING)
    said: list[tuple[str, str, Any]] = []
    for part, device, generation, _ in _some(large, 100):
        said += [
            (device, "hello", Hello(boot=3, generation=generation, agent="0.3.0")),
            (device, "heartbeat", Heartbeat(boot=3, generation=generation)),
        ]
        said += [
            (device, "events", Event(boot=3, seq=seq, generation=generation, execution=part,
                                     state=state))
            for seq, state in enumerate(steps, 1)
        ]  # fmt: skip
    with looking(watch):
        _say(large, *said)


def _relay(large: Fleet) -> None:
    with large.scope() as scope:
        hold = outbox.Hold("relay", "batch", scope.now + timedelta(seconds=10))
        assert outbox.take(scope.tx, scope.now, hold, shards=8, limit=100).messages


def _fold(large: Fleet) -> None:
    with large.scope() as scope:
        inventory.fold_counts(scope)


def _fall_silent(large: Fleet) -> None:
    with large.scope() as scope:
        presence.sweep(scope, limit=500)


def _forget(large: Fleet) -> None:
    for table in retention.TABLES:
        with large.scope() as scope:
            retention.sweep(scope, table, limit=500)


@pytest.mark.parametrize("act", [_relay, _fold, _fall_silent, _forget])
def test_what_the_scheduler_and_the_relay_do_again_and_again_is_as_small(
    large: Fleet, watch: Watch, act: Callable[[Fleet], None]
) -> None:
    with looking(watch):
        act(large)


def test_silence_is_noticed_among_those_in_flight(large: Fleet, watch: Watch) -> None:
    large.later(40 * 86400)
    with looking(watch):
        large.tick()
    assert large.view("all").state == "HALTED"
