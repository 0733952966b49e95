"""What messages change in a device's row does not depend on their order."""

from datetime import UTC, datetime, timedelta
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.messages import Heartbeat, Hello, Presence, State
from control_plane.services import reported
from control_plane.store.devices import Reported

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEW = Reported(
    online=False,
    connection=0,
    last_seen_at=None,
    boot=0,
    state_seq=0,
    generation=0,
    digest="",
    last_known_good="",
    healthy=True,
    agent_version="",
    blueprint=None,
)


def _state(boot: int, seq: int) -> State:
    name = f"{boot}.{seq}"
    return State(boot=boot, seq=seq, generation=boot * 10 + seq, digest=name, last_known_good=name)


def _after_states(states: tuple[State, ...] | list[State]) -> Reported:
    row = NEW
    for state in states:
        row = reported.after_state(row, state, NOW)
    return row


def test_state_documents_in_any_order_leave_the_newest() -> None:
    states = [_state(1, 8), _state(1, 9), _state(2, 1), _state(2, 2)]
    results = {_after_states(order) for order in permutations(states)}
    assert len(results) == 1
    assert results.pop().digest == "2.2"


KEYS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), min_size=1, max_size=12)


@given(KEYS, st.data())
def test_repeats_and_reordering_never_change_the_outcome(
    keys: list[tuple[int, int]], data: st.DataObject
) -> None:
    states = [_state(boot, seq) for boot, seq in keys]
    shuffled = data.draw(st.permutations(states + states))
    newest = _state(*max(keys))
    assert _after_states(shuffled).digest == _after_states(states).digest == newest.digest


def test_a_boot_that_says_hello_outdates_what_the_boot_before_still_says() -> None:
    row = _after_states([_state(1, 500)])
    row = reported.after_hello(row, Hello(boot=2, generation=4, digest="b", agent="1"), None, NOW)
    assert (row.boot, row.digest, row.online) == (2, "b", True)
    row = reported.after_state(row, _state(1, 501), NOW)
    assert row.digest == "b"
    row = reported.after_state(row, _state(2, 0), NOW)
    assert row.digest == "2.0"


def test_a_late_hello_of_an_earlier_boot_changes_nothing() -> None:
    row = _after_states([_state(2, 1)])
    hello = Hello(boot=1, generation=99, digest="old", agent="0")
    assert reported.after_hello(row, hello, "x", NOW) == row


def test_a_hello_that_state_documents_overtook_changes_no_digest() -> None:
    row = _after_states([_state(2, 5)])
    hello = Hello(boot=2, generation=3, digest="old", agent="0.2")
    after = reported.after_hello(row, hello, "pi", NOW)
    assert after.digest == row.digest
    assert (after.agent_version, after.blueprint, after.online) == ("0.2", "pi", True)


def test_an_offline_of_an_earlier_connection_is_ignored() -> None:
    row = reported.after_presence(NEW, Presence(online=True, connection=5), retained=False, now=NOW)
    late = Presence(online=False, connection=4)
    assert reported.after_presence(row, late, retained=False, now=NOW) == row
    own = Presence(online=False, connection=5)
    assert not reported.after_presence(row, own, retained=False, now=NOW).online


def test_presence_in_any_order_leaves_what_the_newest_connection_said_last() -> None:
    words = [
        Presence(online=True, connection=1),
        Presence(online=False, connection=1),
        Presence(online=True, connection=2),
    ]
    for order in permutations(words):
        row = NEW
        for word in order:
            row = reported.after_presence(row, word, retained=False, now=NOW)
        assert (row.online, row.connection) == (True, 2)


def test_a_retained_online_is_no_sign_of_life() -> None:
    swept = NEW._replace(connection=7, last_seen_at=NOW, online=False)
    word = Presence(online=True, connection=7)
    later = NOW + timedelta(days=1)
    assert reported.after_presence(swept, word, retained=True, now=later) == swept
    missed = reported.after_presence(
        swept, Presence(online=True, connection=8), retained=True, now=later
    )
    assert (missed.online, missed.last_seen_at) == (True, NOW)


def test_a_heartbeat_says_what_runs_unless_it_is_older_than_the_state() -> None:
    row = _after_states([_state(2, 1)])
    same = Heartbeat(boot=2, generation=row.generation, digest="now", healthy=False)
    after = reported.after_heartbeat(row, same, NOW)
    assert (after.digest, after.healthy, after.online) == ("now", False, True)
    old = Heartbeat(boot=2, generation=row.generation - 1, digest="then", healthy=False)
    after = reported.after_heartbeat(row, old, NOW)
    assert (after.digest, after.healthy, after.online) == (row.digest, True, True)
