"""The relay: from the outbox to the broker; a row goes when the broker has acknowledged it."""

import time
from datetime import timedelta

from control_plane.bootstrap import Application
from control_plane.gateway.link import IN_FLIGHT, Link
from control_plane.gateway.outage import reading, transaction
from control_plane.store import outbox

POLL_S = 0.1
LEASE_S = 15.0


class Relay:
    """What this gateway is publishing.

    Args:
        app: the application.
        owner: names this gateway among the relays; the same after its restart.
    """

    def __init__(self, app: Application, owner: str) -> None:
        self._app = app
        self._owner = owner
        self._in_flight: dict[int, int] = {}  # MQTT message id -> outbox row
        self._confirmed: list[int] = []
        self._look_at = 0.0
        self._delete_at = 0.0
        self.published = 0

    def confirmed(self, mid: int) -> None:
        """Note that the broker has a message."""
        row = self._in_flight.pop(mid, None)
        if row is not None:
            if not self._confirmed:
                self._delete_at = time.monotonic() + POLL_S
            self._confirmed.append(row)

    def step(self, link: Link) -> None:
        """Delete what has arrived, and publish what waits; returns at once when nothing does.

        Raises:
            OutageError: the database is down.
        """
        if self._confirmed and (not self._in_flight or time.monotonic() >= self._delete_at):
            self._delete_confirmed()
        # Half the window: a few large bites instead of one row for each acknowledgement.
        if time.monotonic() < self._look_at or len(self._in_flight) > IN_FLIGHT // 2:
            return
        began = time.monotonic()
        leased = self._lease(IN_FLIGHT - len(self._in_flight))
        for message in leased:
            if time.monotonic() - began > LEASE_S / 2:
                break  # we were held up: another relay may soon publish what is newer
            mid = link.publish(message.topic, message.payload, retain=message.retain)
            self._in_flight[mid] = message.id
        if not leased:
            self._look_at = time.monotonic() + POLL_S

    def release(self) -> None:
        """Give back every lease: at start, after a lost connection and at the end.

        What was in flight then is published again; whoever gets it twice knows its generation.
        """
        self._in_flight = {}
        self._delete_confirmed()
        with transaction(self._app) as scope:
            outbox.release(scope.tx, self._owner)

    def _lease(self, limit: int) -> list[outbox.Leased]:
        with reading(self._app) as scope:
            if not outbox.pending(scope.tx, scope.now):
                return []
        with transaction(self._app) as scope:
            until = scope.now + timedelta(seconds=LEASE_S)
            return outbox.lease(scope.tx, scope.now, owner=self._owner, until=until, limit=limit)

    def _delete_confirmed(self) -> None:
        if self._confirmed:
            with transaction(self._app) as scope:
                outbox.delete(scope.tx, self._confirmed, self._owner)
            self.published += len(self._confirmed)
            self._confirmed = []
