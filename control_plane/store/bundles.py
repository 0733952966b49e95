"""Bundles by digest, as whoever inspects them wants them: the signed manifest itself."""

from sqlalchemy import select

from control_plane.store.database import Transaction
from control_plane.store.schema import bundle


def envelope(tx: Transaction, digest: str) -> bytes | None:
    """Return the signed manifest of a bundle, or None."""
    found: bytes | None = tx.execute(
        select(bundle.c.envelope).where(bundle.c.digest == digest)
    ).scalar()
    return found
