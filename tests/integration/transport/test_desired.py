"""Orders: generations that only grow, signed, stored and sent in one transaction."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from agent.protocol import messages, topics
from agent.protocol.messages import BundleRef, Heartbeat, Hello, TrialPolicy
from agent.protocol.words import Action
from control_plane.bootstrap import Application
from control_plane.domain.device import DeviceId
from control_plane.domain.errors import NotFoundError
from control_plane.services import desired, inventory, reports
from control_plane.services.desired import Wanted
from control_plane.store import outbox
from control_plane.store.outbox import Hold
from tests.integration.transport.fleets import bundle, enrol, enrol_many, sha, up
from tests.integration.transport.gateways import waiting
from tests.integration.transport.orders import open_order

ONE = DeviceId("edge-1")


def _sent(app: Application) -> list[tuple[str, bytes, bool]]:
    """Return what a relay would publish now: topic, payload, retain."""
    with app.scope("relay") as scope:
        hold = Hold("relay", scope.new_id(), scope.now)
        batch = outbox.take(scope.tx, scope.now, hold, shards=outbox.SHARDS, limit=10_000)
        outbox.release(scope.tx, "relay")
    return [(due.topic, due.payload, due.retain) for due in batch.messages]


def test_an_order_says_everything_that_the_device_must_know(app: Application) -> None:
    enrol(app, "edge-1")
    stored = bundle(app, "1.2.0")
    trial = TrialPolicy(tolerances={"token_ms": 0.1}, min_blocks=3)
    wanted = Wanted(ONE, Action.RUN, stored.digest, "r", "e", trial, soak_s=30.0, max_tries=2)
    with app.scope("engine") as scope:
        assert desired.set_desired(scope, [wanted]) == {"edge-1": 1}
        issued = int(scope.now.timestamp())
    ((topic, payload, retain),) = _sent(app)
    assert (topic, retain) == (topics.desired(topics.DeviceId("edge-1")), True)
    order = open_order(app, payload)
    assert (order.device, order.generation, order.action) == ("edge-1", 1, Action.RUN)
    assert (order.rollout, order.execution) == ("r", "e")
    assert order.bundle == BundleRef(stored.digest, "support-slm", "1.2.0", 120, 30)
    assert (order.trial, order.soak_s, order.max_tries) == (trial, 30.0, 2)
    assert (order.issued, order.expires) == (issued, issued + app.settings.order_ttl_s)


def test_every_order_has_a_higher_generation_and_a_name_of_its_own(app: Application) -> None:
    enrol(app, "edge-1")
    orders = []
    for _ in range(3):
        with app.scope("engine") as scope:
            desired.set_desired(scope, [Wanted(ONE, Action.HOLD)])
        orders += [open_order(app, payload) for _, payload, _ in _sent(app)]
    assert [order.generation for order in orders] == [1, 2, 3]
    assert len({order.order for order in orders}) == 3


def test_a_device_named_twice_gets_the_last_word(app: Application) -> None:
    enrol(app, "edge-1")
    stored = bundle(app)
    with app.scope("engine") as scope:
        wanted = [Wanted(ONE, Action.RUN, stored.digest), Wanted(ONE, Action.HOLD)]
        assert desired.set_desired(scope, wanted) == {"edge-1": 1}
    assert [open_order(app, payload).action for _, payload, _ in _sent(app)] == [Action.HOLD]


def test_writers_at_once_give_each_generation_to_one_of_them(app: Application) -> None:
    devices = enrol_many(app, 6)

    def write(turn: int) -> dict[str, int]:
        order = devices if turn % 2 else devices[::-1]
        with app.scope("engine") as scope:
            return desired.set_desired(scope, [Wanted(one, Action.HOLD) for one in order])

    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(write, range(16)))
    for device in devices:
        assert sorted(one[device] for one in given) == list(range(1, 17))
    assert waiting(app.database) == 16 * len(devices)
    newest = [open_order(app, payload) for _, payload, _ in _sent(app)]
    assert {(order.device, order.generation) for order in newest} == {(d, 16) for d in devices}
    assert len(newest) == len(devices)


def test_many_devices_are_one_batch(app: Application) -> None:
    devices = enrol_many(app, 60)
    stored = bundle(app)
    with app.scope("engine") as scope:
        wanted = [Wanted(one, Action.RUN, stored.digest) for one in devices]
        generations = desired.set_desired(scope, wanted)
    assert generations == dict.fromkeys(devices, 1)
    assert waiting(app.database) == len(devices)


def test_a_bundle_that_does_not_exist_is_named_and_nothing_is_sent(app: Application) -> None:
    enrol(app, "edge-1")
    with pytest.raises(NotFoundError, match=sha("none")), app.scope("engine") as scope:
        desired.set_desired(scope, [Wanted(ONE, Action.RUN, sha("none"))])
    assert _sent(app) == []
    with app.reading("test") as scope:
        assert inventory.get_device(scope, "edge-1").desired_generation == 0


def test_nobody_wanted_is_nothing_done(app: Application) -> None:
    with app.scope("engine") as scope:
        assert desired.set_desired(scope, []) == {}
    assert _sent(app) == []


def _hello(app: Application, generation: int, *, later: timedelta = timedelta()) -> None:
    with app.scope("gateway") as scope:
        said = up("edge-1", "hello", Hello(boot=1, generation=generation, agent="0.1.0"))
        reports.apply_batch(replace(scope, now=scope.now + later), [said])


def _beats(app: Application, generation: int, *, later: timedelta = timedelta()) -> None:
    with app.scope("gateway") as scope:
        said = up("edge-1", "heartbeat", Heartbeat(boot=1, generation=generation))
        reports.apply_batch(replace(scope, now=scope.now + later), [said])


def test_who_is_behind_is_sent_the_newest_order_and_who_is_not_is_left_alone(
    app: Application,
) -> None:
    enrol(app, "edge-1")
    for _ in range(2):
        with app.scope("engine") as scope:
            desired.set_desired(scope, [Wanted(ONE, Action.HOLD)])
    before, waited = _sent(app), waiting(app.database)
    _hello(app, 2)
    assert waiting(app.database) == waited
    _hello(app, 1)
    assert (waiting(app.database), _sent(app)) == (waited + 1, before)


def test_who_is_behind_and_was_not_heard_when_it_said_hello_is_reminded_while_it_lives(
    app: Application,
) -> None:
    enrol(app, "edge-1")
    with app.scope("engine") as scope:
        desired.set_desired(scope, [Wanted(ONE, Action.HOLD)])
    sent, waited = _sent(app), waiting(app.database)
    _beats(app, 0)
    assert waiting(app.database) == waited, "its order may still be on its way"
    later = desired.REMIND_AFTER + timedelta(seconds=1)
    _beats(app, 1, later=later)
    assert waiting(app.database) == waited, "it has it"
    _beats(app, 0, later=later)
    assert (waiting(app.database), _sent(app)) == (waited + 1, sent)


def test_a_device_without_orders_is_sent_nothing(app: Application) -> None:
    enrol(app, "edge-1")
    _hello(app, 0)
    assert _sent(app) == []


def test_an_order_that_outlived_itself_is_signed_again_with_a_new_end(app: Application) -> None:
    enrol(app, "edge-1")
    stored = bundle(app)
    with app.scope("engine") as scope:
        wanted = Wanted(ONE, Action.RUN, stored.digest, "r", "e", soak_s=5.0)
        desired.set_desired(scope, [wanted])
    sent = _sent(app)
    away = timedelta(seconds=2 * app.settings.order_ttl_s)
    _hello(app, 0, later=away)
    again_sent = _sent(app)
    first, second = (open_order(app, payload) for _, payload, _ in [*sent, *again_sent])
    assert second.expires - first.expires == pytest.approx(away.total_seconds(), abs=2)
    again = messages.encode(second)
    assert again != messages.encode(first)
    assert (second.order, second.generation, second.bundle, second.soak_s) == (
        first.order,
        first.generation,
        first.bundle,
        first.soak_s,
    )
    _hello(app, 0, later=away)
    assert _sent(app) == again_sent
