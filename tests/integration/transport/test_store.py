"""The outbox and the leases: who holds what, however many try."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from control_plane.store import leases, outbox
from control_plane.store.database import Database, Transaction
from control_plane.store.outbox import Leased, Outgoing

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOON = NOW + timedelta(seconds=10)
LATER = NOW + timedelta(seconds=11)


def _put(database: Database, count: int) -> None:
    with database.transaction() as tx:
        messages = [Outgoing(f"t/{number}", b"payload", retain=True) for number in range(count)]
        outbox.put_all(tx, NOW, messages)


def _lease(database: Database, owner: str, now: datetime = NOW, limit: int = 10) -> list[Leased]:
    with database.transaction() as tx:
        until = now + timedelta(seconds=10)
        return outbox.lease(tx, now, owner=owner, until=until, limit=limit)


def test_the_oldest_messages_come_first_and_only_to_one(database: Database) -> None:
    _put(database, 5)
    first = _lease(database, "a", limit=3)
    second = _lease(database, "b", limit=3)
    assert [message.topic for message in first] == ["t/0", "t/1", "t/2"]
    assert [message.topic for message in second] == ["t/3", "t/4"]
    assert (first[0].payload, first[0].retain) == (b"payload", True)


def test_relays_at_once_never_get_the_same_message(database: Database) -> None:
    _put(database, 200)
    with ThreadPoolExecutor(8) as pool:
        leased = list(pool.map(lambda n: _lease(database, f"relay-{n}", limit=25), range(8)))
    taken = [message.id for one in leased for message in one]
    assert len(taken) == len(set(taken)) == 200


def test_a_message_whose_relay_died_goes_to_another(database: Database) -> None:
    _put(database, 1)
    held = _lease(database, "dead")
    with database.reading() as tx:
        assert not outbox.pending(tx, NOW)
        assert outbox.pending(tx, LATER)
    assert _lease(database, "alive", LATER) == held


def test_a_relay_gives_back_what_it_held_and_nothing_else(database: Database) -> None:
    _put(database, 2)
    _lease(database, "a", limit=1)
    other = _lease(database, "b", limit=1)
    with database.transaction() as tx:
        outbox.release(tx, "a")
    again = _lease(database, "c")
    assert [message.topic for message in again] == ["t/0"]
    assert again != other


def _say(database: Database, *payloads: bytes, retain: bool = True) -> None:
    with database.transaction() as tx:
        outbox.put_all(tx, NOW, [Outgoing("d/1", payload, retain) for payload in payloads])


def test_a_topic_belongs_to_one_relay_at_a_time(database: Database) -> None:
    _say(database, b"generation 1")
    (slow,) = _lease(database, "slow")
    _say(database, b"generation 2")
    assert _lease(database, "quick") == []
    with database.transaction() as tx:
        outbox.delete(tx, [slow.id], "slow")  # what the slow one has published by now
    assert [message.payload for message in _lease(database, "quick")] == [b"generation 2"]


def test_a_confirmation_that_comes_late_forgets_no_newer_message(database: Database) -> None:
    _say(database, b"generation 1")
    (slow,) = _lease(database, "slow")
    (again,) = _lease(database, "quick", LATER)  # the slow one's lease has run out
    with database.transaction() as tx:
        outbox.delete(tx, [again.id], "quick")
    _say(database, b"generation 2")  # under the number that is free again, on SQLite
    with database.transaction() as tx:
        outbox.delete(tx, [slow.id], "slow")
    assert [message.payload for message in _lease(database, "quick")] == [b"generation 2"]


def test_the_relay_that_has_a_topic_goes_on_with_it(database: Database) -> None:
    _say(database, b"generation 1")
    _lease(database, "a")
    _say(database, b"generation 2")
    assert [message.payload for message in _lease(database, "a")] == [b"generation 2"]


def test_after_a_crash_the_older_order_is_not_published_again(database: Database) -> None:
    _say(database, b"generation 1")
    _lease(database, "dead")  # published, and dead before it could say so
    _say(database, b"generation 2")
    assert [message.payload for message in _lease(database, "alive", LATER)] == [b"generation 2"]
    with database.transaction() as tx:
        outbox.release(tx, "alive")
    assert [message.payload for message in _lease(database, "next")] == [b"generation 2"]


def test_of_retained_messages_only_the_newest_is_published(database: Database) -> None:
    _say(database, *(b"%d" % number for number in range(50)))
    assert [message.payload for message in _lease(database, "a", limit=10)] == []
    leased = [one for _ in range(5) for one in _lease(database, "a", limit=10)]
    assert [message.payload for message in leased] == [b"49"]
    with database.reading() as tx:
        assert tx.execute(text("SELECT count(*) FROM outbox")).scalar_one() == 1


def test_messages_that_are_not_retained_are_all_published_in_order(database: Database) -> None:
    _say(database, b"1", b"2", b"3", retain=False)
    assert [message.payload for message in _lease(database, "a")] == [b"1", b"2", b"3"]


def test_relays_that_lease_together_never_share_a_topic(database: Database) -> None:
    with database.transaction() as tx:
        told = [Outgoing(f"t/{n % 20}", b"%d" % n, retain=False) for n in range(200)]
        outbox.put_all(tx, NOW, told)
    with ThreadPoolExecutor(8) as pool:
        leased = list(pool.map(lambda n: _lease(database, f"relay-{n}", limit=15), range(8)))
    topics = [{message.topic for message in one} for one in leased]
    assert sum(len(one) for one in topics) == len(set().union(*topics))
    for one in leased:
        assert one == sorted(one, key=lambda message: message.id)


def test_a_published_message_is_gone(database: Database) -> None:
    _put(database, 3)
    leased = _lease(database, "a")
    with database.transaction() as tx:
        outbox.delete(tx, [message.id for message in leased], "a")
        assert not outbox.pending(tx, LATER)


def test_a_message_of_a_transaction_that_failed_was_never_there(database: Database) -> None:
    with database.engine.connect() as connection, connection.begin() as cut:
        outbox.put_mqtt(Transaction(connection), NOW, "t", b"", retain=False)
        cut.rollback()
    assert _lease(database, "a") == []


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
