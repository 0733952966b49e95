"""Planted faults: mistakes that only a kill or a race brings to light, each put into every server.

Without kills and races all of them pass. ``make chaos PLANT=name`` must end with what it broke; the
table in docs/testing.md says what noticed each.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from control_plane.bootstrap import Application
from control_plane.domain import rollout_machine
from control_plane.domain.rollout import RolloutState
from control_plane.gateway import inbox
from control_plane.gateway.inbox import Inbox
from control_plane.gateway.outage import transaction
from control_plane.services.incoming import read_all
from control_plane.store import executions, leases, outbox, tallies
from control_plane.store import reports as report_store
from control_plane.store import rollouts as rollout_store
from control_plane.store.reports import ReportKey
from tests.support.planting import instead

MOMENT_S = 0.03
"""Between two steps that should have been one: what a busy machine makes of them anyway."""

Fault = Callable[[], AbstractContextManager[None]]


def acknowledged_before_the_commit() -> AbstractContextManager[None]:
    """The gateway acknowledges what it has read, and stores it afterwards."""

    def flush(self: Inbox, link: Any) -> None:
        batch, self._waiting = self._waiting, []
        incoming = [inbox._incoming(message) for message in batch]
        for message in read_all(incoming, {}):
            seq = getattr(message.body, "seq", None)
            if seq is not None:
                inbox._acknowledge(link, message.device, [(message.body.boot, seq)])  # type: ignore[union-attr]  # whatever has a seq has a boot
        link.acknowledge(batch)
        link.pump_writes()
        time.sleep(MOMENT_S)
        self._note(len(batch), self._apply(incoming))

    return instead((Inbox, "flush", flush))


def counted_before_it_is_applied() -> AbstractContextManager[None]:
    """A report is marked as counted in a transaction of its own, and applied in the next one."""
    real, claim = Inbox._apply, report_store.claim

    def apply(self: Inbox, batch: Any) -> Any:
        keys = {
            ReportKey(one.device, one.body.boot, one.body.seq)  # type: ignore[union-attr]  # an event or a trial
            for one in read_all(batch, {})
            if type(one.body).__name__ in {"Event", "Bench"}
        }
        with transaction(self._app) as scope:
            fresh = claim(scope.tx, keys, scope.now)
        time.sleep(MOMENT_S)
        with instead((report_store, "claim", lambda _tx, asked, _now: fresh & set(asked))):
            return real(self, batch)

    return instead((Inbox, "_apply", apply))


def a_replay_counts_again() -> AbstractContextManager[None]:
    """Nobody looks whether a report came before: tallies go up with every copy of the last one."""
    real_claim, real = report_store.claim, tallies.count_up
    lately = threading.local()

    def claim(tx: Any, keys: Any, now: Any) -> Any:
        new = real_claim(tx, keys, now)
        lately.again = len(set(keys) - new)
        return new

    def count_up(tx: Any, counts: Any) -> None:
        again, lately.again = getattr(lately, "again", 0), 0
        more = {key: n + (again > 0) for key, n in counts.items()}
        real(tx, more)

    return instead((report_store, "claim", claim), (tallies, "count_up", count_up))


def tallies_in_a_transaction_of_their_own() -> AbstractContextManager[None]:
    """Rows are moved and committed; the counts follow."""
    real_scope, up, down = Application.scope, tallies.count_up, tallies.count_down
    mine = threading.local()

    def later(act: Callable[..., None]) -> Callable[..., None]:
        def note(_tx: Any, counts: Any) -> None:
            mine.later = [*getattr(mine, "later", []), (act, dict(counts))]

        return note

    @contextmanager
    def scope(self: Application, actor: str) -> Iterator[Any]:
        mine.later = []
        with real_scope(self, actor) as opened:
            yield opened
        waiting, mine.later = mine.later, []
        if waiting:
            time.sleep(MOMENT_S)
            with real_scope(self, actor) as opened:
                for act, counts in waiting:
                    act(opened.tx, counts)

    changes = (tallies, "count_up", later(up)), (tallies, "count_down", later(down))
    return instead((Application, "scope", scope), *changes)


def ticks_take_no_locks() -> AbstractContextManager[None]:
    """Two schedulers' workers may tick one rollout at the same time (not on SQLite: one writer)."""
    find = rollout_store.find
    real = rollout_machine.advance

    def slowly(*args: Any) -> Any:
        time.sleep(MOMENT_S)
        return real(*args)

    from control_plane.services import rollout_tick  # noqa: PLC0415 - the name that it has imported

    return instead(
        (leases, "tick_alone", lambda _tx, _name: True),
        (executions, "lock_for_tick", lambda _tx, _names: None),
        (rollout_store, "find", lambda tx, name, **_: find(tx, name)),
        (rollout_tick, "advance", slowly),
    )


def a_halt_lets_offers_through() -> AbstractContextManager[None]:
    """A tick of a halted rollout offers as if it were running."""
    real = rollout_machine._watch

    def watch(view: Any, now: float) -> Any:
        found = real(view, now)
        halted = view.machine.state is RolloutState.HALTED
        return found or (rollout_machine._offer(view, now) if halted else None)

    return instead((rollout_machine, "_watch", watch))


def the_relay_forgets_what_it_takes() -> AbstractContextManager[None]:
    """A row leaves the outbox when it is taken, not when the broker has it."""
    real = outbox.take

    def take(tx: Any, *args: Any, **more: Any) -> Any:
        batch = real(tx, *args, **more)
        outbox.delete(tx, [message.id for message in batch.messages], batch.name)
        return batch

    return instead((outbox, "take", take))


PLANTED: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        acknowledged_before_the_commit,
        counted_before_it_is_applied,
        a_replay_counts_again,
        tallies_in_a_transaction_of_their_own,
        ticks_take_no_locks,
        a_halt_lets_offers_through,
        the_relay_forgets_what_it_takes,
    )
}
A_DATABASE_THAT_FORGETS = "a_database_that_forgets"
"""Not a fault of ours, but of how PostgreSQL is set up: it answers before the commit is safe."""
NAMES = (*PLANTED, A_DATABASE_THAT_FORGETS)
