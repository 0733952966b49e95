"""Who has let which wave open, and of what words."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, delete, insert, select

from control_plane.store.database import Transaction
from control_plane.store.schema import approval, rollout

# Built once: every tick of a rollout that waits, or may, asks for these.
_PEOPLE = (
    select(approval.c.person)
    .where(
        approval.c.rollout == bindparam("of"),
        approval.c.wave == bindparam("nr"),
        approval.c.digest == bindparam("words"),
    )
    .order_by(approval.c.person)
)
_AUTHORS = select(rollout.c.created_by, rollout.c.edited_by).where(
    rollout.c.name == bindparam("of")
)


@dataclass(frozen=True)
class Given:
    """One person's approval of one wave, of a rollout that says what `digest` is made of."""

    rollout: str
    wave: int
    person: str
    digest: str


def add(tx: Transaction, now: datetime, given: Given) -> None:
    """Store an approval; the same person's earlier one of this wave is replaced."""
    theirs = (
        approval.c.rollout == given.rollout,
        approval.c.wave == given.wave,
        approval.c.person == given.person,
    )
    tx.execute(delete(approval).where(*theirs))
    tx.execute(
        insert(approval),
        {
            "rollout": given.rollout,
            "wave": given.wave,
            "person": given.person,
            "digest": given.digest,
            "at": now,
        },
    )


def people(tx: Transaction, name: str, wave: int, digest: str) -> list[str]:
    """Return who approved this wave as it stands, each once."""
    return list(tx.execute(_PEOPLE, {"of": name, "nr": wave, "words": digest}).scalars())


def authors(tx: Transaction, name: str) -> Collection[str]:
    """Return who wrote the rollout: who created it, and who changed it last."""
    rows = tx.execute(_AUTHORS, {"of": name})
    return sorted({person for row in rows for person in row if person})
