"""Named leases with a fencing epoch: who does a thing now. Economy, never safety."""

from datetime import datetime

from sqlalchemy import func, or_, select, true, update

from control_plane.store.bulk import insert_one
from control_plane.store.database import Transaction
from control_plane.store.schema import lease


def take(tx: Transaction, name: str, holder: str, *, now: datetime, until: datetime) -> int | None:
    """Take or prolong the lease `name`.

    Returns:
        The epoch, which grows with every change of holder; None while another holds it.
    """
    if insert_one(tx, lease, {"name": name, "holder": holder, "epoch": 1, "until": until}):
        return 1
    epoch = lease.c.epoch
    mine = tx.execute(
        update(lease)
        .where(lease.c.name == name, lease.c.holder == holder)
        .values(until=until)
        .returning(epoch)
    ).scalar()
    if mine is not None:
        return int(mine)
    taken = tx.execute(
        update(lease)
        .where(lease.c.name == name, or_(lease.c.until < now, lease.c.holder == ""))
        .values(holder=holder, until=until, epoch=epoch + 1)
        .returning(epoch)
    ).scalar()
    return None if taken is None else int(taken)


def give_back(tx: Transaction, name: str, holder: str) -> None:
    """End the lease, if `holder` still has it."""
    tx.execute(
        update(lease).where(lease.c.name == name, lease.c.holder == holder).values(holder="")
    )


def holder(tx: Transaction, name: str, now: datetime) -> str:
    """Return who holds the lease; empty for nobody."""
    found = tx.execute(
        select(lease.c.holder).where(lease.c.name == name, lease.c.until >= now)
    ).scalar()
    return found or ""


def tick_alone(tx: Transaction, rollout: str) -> bool:
    """Return whether no other transaction ticks this rollout, and let none until this one ends.

    Held by the database's connection, so nobody can leave it behind, and it writes nothing.
    """
    if tx.dialect.name == "sqlite":
        return True  # its writers queue anyway
    key = func.hashtextextended(f"tick/{rollout}", 0)
    return bool(tx.execute(select(func.pg_try_advisory_xact_lock(key))).scalar_one())


def wait_at_most(tx: Transaction, seconds: float) -> None:
    """Let the rest of the transaction fail rather than wait longer than this for a lock."""
    if tx.dialect.name == "postgresql":  # SQLite has its own limit, for all connections
        tx.execute(select(func.set_config("lock_timeout", f"{round(seconds * 1000)}ms", true())))
