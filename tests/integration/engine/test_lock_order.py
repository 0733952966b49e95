"""Locks on PostgreSQL: whoever needs several takes them in one order, so nobody waits in a ring."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select, text, update

from agent.protocol import messages, topics
from agent.protocol.messages import Event, Hello
from agent.protocol.words import Action, ExecutionState
from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.domain.device import DeviceId
from control_plane.domain.errors import ConflictError
from control_plane.services import desired, invalidation, inventory, presence, reports, rollouts
from control_plane.services.desired import Wanted
from control_plane.services.reports import Incoming
from control_plane.store import executions, outbox, schema
from control_plane.store.outbox import Hold
from tests.integration.engine.conftest import Fleet
from tests.integration.transport.orders import open_order

E = ExecutionState
WAIT_S = 30.0
ALL = [{"name": "all", "percent": 100}]
OLDER, NEWER = "slm-1.1.0", "slm-1.2.0"


@pytest.fixture
def fleet(postgres_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Two rollouts that run at once: the older one has the first and the last devices."""
    app = Application(Settings(data=tmp_path / "data", database_url=postgres_url))
    made = Fleet(app)
    made.add_blueprints()
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        made.add_version(version)
    made.add_devices(4, runs="1.0.0")
    made.start("1.1.0", waves=ALL, selector='not blueprint = "x86-64-avx2"')
    made.later(1)
    made.start("1.2.0", waves=ALL, selector='blueprint = "x86-64-avx2"')
    yield made
    made.check_tallies()
    app.close()


@contextmanager
def together() -> Iterator[Callable[[Callable[[], object]], Future[object]]]:
    """Start acts in threads; what they raise is raised at the end."""
    started: list[Future[object]] = []
    with ThreadPoolExecutor(4) as pool:

        def start(act: Callable[[], object]) -> Future[object]:
            started.append(pool.submit(act))
            return started[-1]

        yield start
    for one in started:
        one.result()


def waiting(fleet: Fleet) -> int:
    """How many transactions wait for a lock."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with fleet.app.database.reading() as tx:
        return int(tx.execute(text(query)).scalar_one())


def until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, f"still not: {what}"
        time.sleep(0.02)  # PostgreSQL tells nobody who begins to wait


def said(fleet: Fleet, name: str, device: str) -> Incoming:
    part = fleet.parts(name)[device]
    event = Event(boot=1, seq=1, generation=part.generation, execution=part.id, state=E.DOWNLOADING)
    return Incoming(topics.up(topics.DeviceId(device), "events"), messages.encode(event))


def applied(fleet: Fleet, batch: list[Incoming]) -> Callable[[], None]:
    def act() -> None:
        with fleet.scope() as scope:
            assert reports.apply_batch(scope, batch).counted == len(batch)

    return act


def test_two_batches_that_name_two_rollouts_in_opposite_order(fleet: Fleet) -> None:
    one = [said(fleet, OLDER, "arm64-board-0"), said(fleet, NEWER, "x86-64-avx2-0")]
    other = [said(fleet, NEWER, "x86-64-avx2-1"), said(fleet, OLDER, "x86-64-vnni-0")]
    with together() as start, fleet.scope() as scope:
        executions.lock_rollout(scope.tx, OLDER)
        for n, batch in enumerate((one, other)):
            start(applied(fleet, batch))
            until(lambda: waiting(fleet) > n, "the batch waits")  # noqa: B023 - used in this turn only
    assert fleet.in_state(OLDER, E.DOWNLOADING) == ["arm64-board-0", "x86-64-vnni-0"]
    assert fleet.in_state(NEWER, E.DOWNLOADING) == ["x86-64-avx2-0", "x86-64-avx2-1"]


def ticked(fleet: Fleet) -> None:
    """Tick although nothing is due, so that every lock is taken."""
    with fleet.scope() as scope:
        rollouts.tick(scope)


def test_a_batch_and_a_tick_over_the_same_rollouts(fleet: Fleet) -> None:
    batch = [said(fleet, OLDER, "arm64-board-0"), said(fleet, NEWER, "x86-64-avx2-0")]
    with together() as start, fleet.scope() as scope:
        executions.lock_rollout(scope.tx, NEWER)
        for n, act in enumerate((lambda: ticked(fleet), applied(fleet, batch))):
            start(act)
            until(lambda: waiting(fleet) > n, "it waits")  # noqa: B023 - used in this turn only
    assert fleet.in_state(OLDER, E.DOWNLOADING) == ["arm64-board-0"]


def test_a_quarantine_a_tick_and_a_report_of_the_same_device(fleet: Fleet) -> None:
    device = "arm64-board-0"

    def quarantine() -> None:
        with fleet.scope() as scope:
            inventory.quarantine(scope, device, reason="stolen")

    def report() -> None:
        with fleet.scope() as scope:
            reports.apply_batch(scope, [said(fleet, OLDER, device)])

    with together() as start, fleet.scope() as scope:
        executions.lock_rollout(scope.tx, OLDER)
        for n, act in enumerate((lambda: ticked(fleet), quarantine, report)):
            start(act)
            until(lambda: waiting(fleet) > n, "it waits")  # noqa: B023 - used in this turn only
    assert fleet.parts(OLDER)[device].state == "CANCELED"
    assert fleet.order(device).action is Action.HOLD


def test_an_invalidation_among_a_tick_a_plan_and_a_start_of_the_same_version(fleet: Fleet) -> None:
    refused: list[str] = []
    fleet.create("1.1.0", name="draft")

    def invalidate() -> None:
        with fleet.scope() as scope:
            invalidation.invalidate(scope, "slm", "1.1.0", reason="it leaks", devices="revert")

    def begin(act: Callable[[], object]) -> Callable[[], None]:
        def beginning() -> None:
            try:
                act()
            except ConflictError as error:
                refused.append(error.code)

        return beginning

    plan = begin(lambda: fleet.create("1.1.0", name="late"))
    again = begin(lambda: fleet.do("start", "draft"))
    with together() as start, fleet.scope() as scope:
        executions.lock_rollout(scope.tx, OLDER)
        for n, act in enumerate((lambda: ticked(fleet), invalidate, plan, again)):
            start(act)
            until(lambda: waiting(fleet) > n, "it waits")  # noqa: B023 - used in this turn only
    # The plan comes too late; the start may come first, and is then taken back with the rest.
    assert "version-invalid" in refused
    ended = {"ABORTED", "REVERTING"}
    assert [fleet.view(name).state in ended for name in (OLDER, "draft")] == [True, True]
    assert fleet.view(NEWER).state == "RUNNING"


def test_a_sweep_leaves_devices_alone_that_are_heard_right_now(fleet: Fleet) -> None:
    with fleet.scope() as scope:
        scope.tx.execute(update(schema.device).values(online=True))
    fleet.later(fleet.app.settings.silent_after_s + 1)
    hello = messages.encode(Hello(boot=1, generation=9, agent="0.1.0"))
    with fleet.scope() as scope:
        heard = Incoming(topics.up(topics.DeviceId("arm64-board-0"), "hello"), hello)
        reports.apply_batch(scope, [heard])
        with together() as start:
            start(lambda: swept(fleet)).result(WAIT_S)
    query = select(schema.device.c.id).where(schema.device.c.online)
    with fleet.scope() as scope:
        assert list(scope.tx.execute(query).scalars()) == ["arm64-board-0"]


def swept(fleet: Fleet) -> int:
    with fleet.scope() as scope:
        scope.tx.execute(text("SET LOCAL lock_timeout = '10s'"))
        return presence.sweep(scope)


@pytest.mark.parametrize("age", [1, 40 * 86400], ids=["as it is", "renewed"])
def test_an_order_sent_again_never_overtakes_the_newer_one(fleet: Fleet, age: float) -> None:
    device = DeviceId("arm64-board-0")
    fleet.later(age)
    hello = Incoming(
        topics.up(topics.DeviceId(device), "hello"),
        messages.encode(Hello(boot=1, generation=0, agent="0.1.0")),
    )

    def greet() -> None:
        with fleet.scope() as scope:
            reports.apply_batch(scope, [hello])

    with together() as start, fleet.scope() as scope:
        newer = desired.set_desired(scope, [Wanted(device, Action.HOLD)])[device]
        greeted = start(greet)
        until(lambda: greeted.done() or waiting(fleet) > 0, "the greeting is being answered")
    assert fleet.order(device).generation == newer
    with fleet.scope() as scope:
        hold = Hold("relay", scope.new_id(), scope.now)
        batch = outbox.take(scope.tx, scope.now, hold, shards=outbox.SHARDS, limit=100)
    topic = topics.desired(topics.DeviceId(device))
    sent = [open_order(fleet.app, due.payload) for due in batch.messages if due.topic == topic]
    assert [order.generation for order in sent] == [newer]
