"""The outbox: what is published, by whom, in which order, however many relays there are."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select, text

from control_plane.domain.device import DeviceId
from control_plane.store import outbox, schema
from control_plane.store.database import Database, Transaction
from control_plane.store.outbox import FIRST, SHARDS, Batch, Hold, Outgoing, Sending

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=11)


def _put(database: Database, topics: Sequence[str]) -> None:
    with database.transaction() as tx:
        outbox.put_all(tx, NOW, [Outgoing(topic, b"payload", retain=True) for topic in topics])


def _apart(count: int) -> list[str]:
    """Return topics of as many different shards."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < count:
        topic = f"t/{number}"
        found.setdefault(outbox.shard_of(topic), topic)
        number += 1
    return list(found.values())


def _take(
    database: Database,
    owner: str,
    *,
    now: datetime = NOW,
    batch: str = "",
    shards: int = SHARDS,
    limit: int = 1000,
) -> Batch:
    with database.transaction() as tx:
        hold = Hold(owner, batch or owner, now + timedelta(seconds=10))
        return outbox.take(tx, now, hold, shards=shards, limit=limit)


def _settle(database: Database, batch: Batch) -> None:
    with database.transaction() as tx:
        outbox.delete(tx, [due.id for due in batch.messages], batch.name)
        outbox.give_back(tx, batch.name)


def _topics(batch: Batch) -> list[str]:
    return [due.topic for due in batch.messages]


def _payloads(batch: Batch) -> list[bytes]:
    return [due.payload for due in batch.messages]


def _waiting(database: Database) -> int:
    with database.reading() as tx:
        return tx.execute(select(func.count()).select_from(schema.outbox)).scalar_one()


def test_a_shard_is_one_relays_and_the_others_are_anothers(database: Database) -> None:
    topics = _apart(5)
    _put(database, topics)
    first, second = _take(database, "a", shards=3), _take(database, "b")
    assert len(_topics(first)) == 3
    assert sorted(_topics(first) + _topics(second)) == sorted(topics)
    assert (first.messages[0].payload, first.messages[0].retain) == (b"payload", True)
    assert _topics(_take(database, "c")) == []


def test_relays_at_once_never_get_the_same_message(database: Database) -> None:
    _put(database, [f"t/{number}" for number in range(500)])
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda n: _take(database, f"relay-{n}", shards=8), range(8)))
    ids = [due.id for batch in batches for due in batch.messages]
    assert len(ids) == len(set(ids)) == 500


def test_what_is_new_in_a_held_shard_waits_for_its_relay(database: Database) -> None:
    _put(database, ["t/1"])
    slow = _take(database, "slow")
    _say(database, b"newer", topic="t/1")
    assert _topics(_take(database, "quick")) == []
    _settle(database, slow)
    assert _payloads(_take(database, "quick")) == [b"newer"]


def test_a_shard_whose_relay_died_goes_to_another(database: Database) -> None:
    _put(database, ["t/1"])
    held = _take(database, "dead")
    assert _topics(_take(database, "alive")) == []
    assert _take(database, "alive", now=LATER).messages == held.messages


def test_a_confirmation_that_comes_late_forgets_no_newer_message(database: Database) -> None:
    _put(database, ["t/1"])
    late = _take(database, "late")
    _settle(database, _take(database, "heir", now=LATER))
    _say(database, b"newer", topic="t/1")  # under the number that is free again, on SQLite
    _settle(database, late)
    assert _payloads(_take(database, "heir", now=LATER)) == [b"newer"]


def test_who_was_taken_for_dead_frees_nothing_of_its_heir(database: Database) -> None:
    _put(database, ["t/1"])
    late = _take(database, "late")
    _take(database, "heir", now=LATER)
    _say(database, b"newer", topic="t/1")
    _settle(database, late)
    with database.transaction() as tx:
        outbox.prolong(tx, [late.name], LATER + timedelta(days=1))
    assert _topics(_take(database, "third", now=LATER)) == []
    assert _payloads(_take(database, "third", now=LATER + timedelta(seconds=11))) == [b"newer"]


def test_a_relay_that_comes_back_to_a_shard_does_not_free_its_newer_hold(
    database: Database,
) -> None:
    _put(database, ["t/1"])
    late = _take(database, "a", batch="a1")
    newer = _take(database, "a", batch="a2", now=LATER)
    assert newer.messages == late.messages
    _say(database, b"newer", topic="t/1")
    _settle(database, late)
    assert _topics(_take(database, "b", now=LATER)) == []


def test_a_slow_broker_costs_no_shard_that_is_prolonged(database: Database) -> None:
    _put(database, ["t/1"])
    slow = _take(database, "a")
    with database.transaction() as tx:
        outbox.prolong(tx, [slow.name], LATER + timedelta(seconds=10))
    assert _topics(_take(database, "b", now=LATER)) == []


def test_a_relay_gives_back_what_it_held_and_nothing_else(database: Database) -> None:
    _put(database, _apart(2))
    mine, other = _take(database, "a", shards=1), _take(database, "b")
    with database.transaction() as tx:
        outbox.release(tx, "a")
    assert _take(database, "c").messages == mine.messages
    assert other.messages != mine.messages


def test_shards_come_in_turn(database: Database) -> None:
    _put(database, _apart(4))
    seen = []
    for turn in range(4):
        batch = _take(database, "a", shards=1, now=NOW + timedelta(seconds=turn))
        seen += _topics(batch)
        with database.transaction() as tx:
            outbox.give_back(tx, batch.name)  # the message stays: the next shard has its turn
    assert len(set(seen)) == 4


def test_relays_count_each_other_while_they_work(database: Database) -> None:
    def join(owner: str, now: datetime) -> int:
        with database.transaction() as tx:
            return outbox.join(tx, now, owner=owner, until=now + timedelta(seconds=10))

    assert [join("a", NOW), join("b", NOW), join("a", NOW)] == [1, 2, 2]
    with database.transaction() as tx:
        outbox.release(tx, "b")
    assert join("a", NOW) == 1
    join("c", NOW)
    assert join("a", LATER) == 1


# --- what is published of what waits ------------------------------------------------------------


def _say(database: Database, *payloads: bytes, retain: bool = True, topic: str = "d/1") -> None:
    with database.transaction() as tx:
        outbox.put_all(tx, NOW, [Outgoing(topic, payload, retain) for payload in payloads])


def _order(database: Database, *devices: str, generation: int = 1, rank: int = 1) -> None:
    """Store orders that say their generation, and that they are to be sent."""
    with database.transaction() as tx:
        for one in devices:
            tx.execute(
                text(
                    "INSERT INTO device (id, state, blueprint, hardware, agent_version,"
                    " secret_sha256, certificate_serial, enrolled_at, online, connection, boot,"
                    " state_seq, generation, digest, last_known_good, healthy)"
                    " VALUES (:id, 'active', '', '{}', '', :id, '', :at, false, 0, 0, 0, 0, '', '',"
                    " true) ON CONFLICT DO NOTHING"
                ),
                {"id": one, "at": NOW},
            )
            tx.execute(
                text(
                    "INSERT INTO desired (device_id, generation, action, digest, rollout,"
                    " execution_id, envelope, issued_at) VALUES (:id, :n, '', '', '', '', :e, :at)"
                    " ON CONFLICT (device_id) DO UPDATE SET generation = :n, envelope = :e"
                ),
                {"id": one, "n": generation, "e": b"%d" % generation, "at": NOW},
            )
        orders = [Sending(DeviceId(one), f"d/{one}", rank) for one in devices]
        outbox.put_orders(tx, NOW, orders)


def test_an_order_is_read_when_it_goes(database: Database) -> None:
    _order(database, "edge-1", generation=1)
    _order(database, "edge-1", generation=2)
    batch = _take(database, "a")
    assert (_topics(batch), _payloads(batch)) == (["d/edge-1"], [b"2"])
    _settle(database, batch)
    assert _waiting(database) == 0


def test_after_a_crash_the_older_order_is_not_published_again(database: Database) -> None:
    _order(database, "edge-1", generation=1)
    assert _payloads(_take(database, "dead")) == [b"1"]  # published, and dead before it said so
    _order(database, "edge-1", generation=2)
    assert _payloads(_take(database, "alive", now=LATER)) == [b"2"]
    with database.transaction() as tx:
        outbox.release(tx, "alive")
    assert _payloads(_take(database, "next", now=LATER)) == [b"2"]


def test_an_order_of_a_device_that_is_gone_is_forgotten(database: Database) -> None:
    _order(database, "edge-1", "edge-2")
    with database.transaction() as tx:
        tx.execute(text("DELETE FROM device WHERE id = 'edge-1'"))
    batch = _take(database, "a")
    assert _topics(batch) == ["d/edge-2"]
    _settle(database, batch)
    assert _waiting(database) == 0


def test_where_nothing_is_left_to_publish_no_shard_is_held(database: Database) -> None:
    _order(database, "edge-1")
    with database.transaction() as tx:
        tx.execute(text("DELETE FROM device"))
    assert _topics(_take(database, "a")) == []
    with database.reading() as tx:
        assert set(tx.execute(select(schema.outbox_shard.c.owner)).scalars()) == {""}
    assert _waiting(database) == 0


def test_what_takes_back_goes_before_what_hands_out(database: Database) -> None:
    offered = [f"edge-{number:03}" for number in range(300)]
    _order(database, *offered)
    _order(database, "edge-a", "edge-b", rank=FIRST)
    batch = _take(database, "a", limit=SHARDS)
    assert sorted(_topics(batch)[:2]) == ["d/edge-a", "d/edge-b"]
    assert len(batch.messages) <= SHARDS


def test_who_waits_for_an_order_and_is_taken_back_is_served_first(database: Database) -> None:
    _order(database, *(f"edge-{number:03}" for number in range(100)))
    _order(database, "edge-099", generation=2, rank=FIRST)
    batch = _take(database, "a")
    assert (batch.messages[0].topic, batch.messages[0].payload) == ("d/edge-099", b"2")
    assert _topics(batch).count("d/edge-099") == 1


def test_of_retained_messages_in_a_batch_only_the_newest_is_published(database: Database) -> None:
    _say(database, *(b"%d" % number for number in range(50)))
    batch = _take(database, "a")
    assert _payloads(batch) == [b"49"]
    assert _waiting(database) == 1


def test_messages_that_are_not_retained_are_all_published_in_order(database: Database) -> None:
    _say(database, b"1", b"2", b"3", retain=False)
    first = _take(database, "a", limit=2)
    assert _payloads(first) == [b"1", b"2"]
    _settle(database, first)
    assert _payloads(_take(database, "a")) == [b"3"]


def test_relays_that_work_together_keep_the_order_of_every_topic(database: Database) -> None:
    with database.transaction() as tx:
        told = [Outgoing(f"t/{n % 20}", b"%d" % n, retain=False) for n in range(200)]
        outbox.put_all(tx, NOW, told)
    published: list[tuple[str, int]] = []

    def work(number: int) -> None:
        for turn in range(40):
            batch = _take(database, f"relay-{number}", batch=f"{number}/{turn}", shards=3, limit=6)
            published.extend((due.topic, int(due.payload)) for due in batch.messages)
            _settle(database, batch)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    while (rest := _take(database, "rest")).messages:
        published.extend((due.topic, int(due.payload)) for due in rest.messages)
        _settle(database, rest)
    assert len(published) == 200
    for topic in {topic for topic, _ in published}:
        mine = [number for one, number in published if one == topic]
        assert mine == sorted(mine)


def test_a_message_of_a_transaction_that_failed_was_never_there(database: Database) -> None:
    with database.engine.connect() as connection, connection.begin() as cut:
        outbox.put_all(Transaction(connection), NOW, [Outgoing("t", b"")])
        cut.rollback()
    assert _waiting(database) == 0


def test_a_relay_reads_as_much_as_it_takes_however_long_the_queue_is(database: Database) -> None:
    """The plan itself says so: rows that PostgreSQL has looked at, not time."""
    _put(database, [f"t/{number}" for number in range(20_000)])
    with database.transaction() as tx:
        tx.execute(text("ANALYZE"))
        statement = outbox._first(tx.dialect.name)
        if tx.dialect.name == "sqlite":
            plan = tx.execute(
                text(f"EXPLAIN QUERY PLAN {statement}"), {"shards": "[1, 2, 3]", "each": 5}
            )
            steps = [row[-1] for row in plan]
            assert any("ix_outbox_shard_rank_id (shard=?)" in step for step in steps)
            assert not any(step.startswith(("SCAN due", "SCAN o")) for step in steps)
            return
        explain = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}")
        found = tx.execute(explain, {"shards": [1, 2, 3], "each": 5}).scalar_one()
    plan = json.loads(found) if isinstance(found, str) else found
    looked = list(_nodes(plan[0]["Plan"]))
    of_outbox = [node for node in looked if node.get("Relation Name") == "outbox"]
    assert [node["Node Type"] for node in of_outbox] == ["Index Scan"]
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in of_outbox) == 15
    assert not any("Rows Removed by Filter" in node for node in of_outbox)


def _nodes(plan: dict[str, Any]) -> Sequence[dict[str, Any]]:
    return [plan, *(node for one in plan.get("Plans", []) for node in _nodes(one))]
