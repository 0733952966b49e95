"""PURE: what a device's messages change in its row, whatever order they come in."""

from datetime import datetime, timedelta

from agent.protocol.messages import Heartbeat, Hello, Presence, State
from control_plane.store.devices import Reported


def after_hello(row: Reported, hello: Hello, blueprint: str | None, now: datetime) -> Reported:
    """Return the row after a device connected; an earlier boot's hello is only old news."""
    if hello.boot < row.boot:
        return row
    alive = row._replace(
        online=True,
        last_seen_at=now,
        agent_version=hello.agent[:32],
        blueprint=blueprint,
    )
    if hello.boot == row.boot and hello.generation < row.generation:
        return alive
    return alive._replace(
        boot=hello.boot,
        # Below every number that this boot can give: its first state document is newer.
        state_seq=row.state_seq if hello.boot == row.boot else -1,
        generation=hello.generation,
        digest=hello.digest,
        last_known_good=hello.last_known_good,
    )


def after_presence(row: Reported, presence: Presence, *, retained: bool, now: datetime) -> Reported:
    """Return the row after a connection began or ended.

    A connection that has been followed by another may end as late as it likes. A retained word is
    the broker's memory and no sign of life: after a crash it may be of any age.
    """
    if presence.connection < row.connection:
        return row
    if not presence.online:
        return row._replace(online=False, connection=presence.connection)
    if not retained:
        return row._replace(online=True, connection=presence.connection, last_seen_at=now)
    known = presence.connection == row.connection
    return row if known else row._replace(online=True, connection=presence.connection)


def after_state(row: Reported, state: State, now: datetime) -> Reported:
    """Return the row after a state document, which applies only when newer."""
    seen = row._replace(last_seen_at=now)
    if (state.boot, state.seq) <= (row.boot, row.state_seq):
        return seen
    return seen._replace(
        boot=state.boot,
        state_seq=state.seq,
        generation=state.generation,
        digest=state.digest,
        last_known_good=state.last_known_good,
    )


def after_heartbeat(row: Reported, beat: Heartbeat, now: datetime) -> Reported:
    """Return the row after a sign of life; one from before the newest state changes no digest."""
    alive = row._replace(online=True, last_seen_at=now)
    if (beat.boot, beat.generation) < (row.boot, row.generation):
        return alive
    return alive._replace(digest=beat.digest, healthy=beat.healthy)


def seen(row: Reported, now: datetime) -> Reported:
    """Return the row after an event or a trial: a sign of life."""
    return row._replace(last_seen_at=now)


def is_stale(row: Reported, now: datetime, every: timedelta) -> bool:
    """Return whether a sign of life is worth writing: the last one written is `every` old."""
    return row.last_seen_at is None or now - row.last_seen_at >= every
