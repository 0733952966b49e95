"""The relay: from the outbox to the broker; a row goes when the broker has acknowledged it."""

import time
from dataclasses import dataclass, field
from datetime import timedelta

from control_plane.bootstrap import Application
from control_plane.gateway.link import Link
from control_plane.gateway.outage import reading, transaction
from control_plane.services.scope import Scope
from control_plane.store import outbox
from control_plane.store.outbox import SHARDS, Batch, Hold

POLL_S = 0.1
LEASE_S = 15.0
JOIN_S = 1.0
"""How often a relay that has work looks how many others have."""
BATCHES = 2
"""While the broker acknowledges one, the next is read and published."""
MESSAGES = 400
"""Of one batch."""


@dataclass
class _Held:
    """A batch under way."""

    name: str
    waiting: dict[int, int] = field(default_factory=dict)  # MQTT message id -> outbox row
    done: list[int] = field(default_factory=list)


class Relay:
    """What this gateway is publishing.

    Args:
        app: the application.
        owner: names this gateway among the relays; the same after its restart.
    """

    def __init__(self, app: Application, owner: str) -> None:
        self._app = app
        self._owner = owner
        self._held: list[_Held] = []
        self._look_at = self._join_at = self._prolong_at = 0.0
        self._relays = 1
        self.published = 0

    def confirmed(self, mid: int) -> None:
        """Note that the broker has a message."""
        for held in self._held:
            row = held.waiting.pop(mid, None)
            if row is not None:
                held.done.append(row)
                self.published += 1
                return

    def step(self, link: Link) -> None:
        """Delete what has arrived, and publish what waits; returns at once when nothing does.

        Raises:
            OutageError: the database is down.
        """
        began = time.monotonic()
        done = [held for held in self._held if not held.waiting]
        slow = bool(self._held) and began >= self._prolong_at
        if not done and not slow and not self._may_take(began):
            return
        with transaction(self._app) as scope:
            for held in done:
                outbox.delete(scope.tx, held.done, held.name)
                outbox.give_back(scope.tx, held.name)
            if slow:
                self._prolong(scope)
            room = len(self._held) - len(done) < BATCHES
            batch = self._take(scope, began) if room else None
        self._held = [held for held in self._held if held not in done]
        if slow:
            self._prolong_at = began + LEASE_S / 3
        if batch is None:
            return
        if batch.messages:
            self._publish(link, batch, began)
        else:
            self._look_at = began + POLL_S

    def release(self) -> None:
        """Give back all that we hold: at start, after a lost connection and at the end.

        What was in flight then is published again; whoever gets it twice knows its generation.
        """
        with transaction(self._app) as scope:
            for held in self._held:
                outbox.delete(scope.tx, held.done, held.name)
            outbox.release(scope.tx, self._owner)
        self._held = []
        self._look_at = self._join_at = 0.0

    def _may_take(self, now: float) -> bool:
        if len(self._held) >= BATCHES or now < self._look_at:
            return False
        with reading(self._app) as scope:
            waits = outbox.pending(scope.tx)
        if not waits:
            self._look_at = now + POLL_S
        return waits

    def _take(self, scope: Scope, now: float) -> Batch:
        until = scope.now + timedelta(seconds=LEASE_S)
        if now >= self._join_at:
            self._relays = outbox.join(scope.tx, scope.now, owner=self._owner, until=until)
            self._join_at = now + JOIN_S
        share = max(1, SHARDS // (BATCHES * self._relays))
        hold = Hold(self._owner, scope.new_id(), until)
        return outbox.take(scope.tx, scope.now, hold, shards=share, limit=MESSAGES)

    def _publish(self, link: Link, batch: Batch, began: float) -> None:
        held = _Held(batch.name)
        if not self._held:
            self._prolong_at = began + LEASE_S / 3
        self._held.append(held)
        for message in batch.messages:
            if time.monotonic() - began > LEASE_S / 2:
                break  # we were held up: another relay may soon publish what is newer
            mid = link.publish(message.topic, message.payload, retain=message.retain)
            held.waiting[mid] = message.id

    def _prolong(self, scope: Scope) -> None:
        """Keep what the broker is slow to acknowledge: only we know that it is on its way."""
        names = [held.name for held in self._held]
        outbox.prolong(scope.tx, names, scope.now + timedelta(seconds=LEASE_S))
