"""Token rows, hashed: enrolment tokens with their uses, API tokens with their names."""

from datetime import datetime

from sqlalchemy import bindparam, insert, or_, select, update

from control_plane.store.database import Transaction
from control_plane.store.schema import api_token, enrollment_token


def add_enrollment(
    tx: Transaction,
    *,
    token_id: str,
    secret_sha256: str,
    labels: dict[str, str],
    uses: int,
    now: datetime,
    expires_at: datetime,
) -> None:
    """Store an enrolment token."""
    tx.execute(
        insert(enrollment_token).values(
            id=token_id,
            secret_sha256=secret_sha256,
            labels=labels,
            uses_left=uses,
            created_at=now,
            expires_at=expires_at,
        )
    )


def enrollment_secret(tx: Transaction, token_id: str) -> str:
    """Return the hash of an enrolment token's secret; empty if there is no such token."""
    column = enrollment_token.c.secret_sha256
    return tx.execute(select(column).where(enrollment_token.c.id == token_id)).scalar() or ""


def spend_enrollment(tx: Transaction, token_id: str, now: datetime) -> dict[str, str] | None:
    """Use an enrolment token once, atomically.

    Returns:
        Its labels; None when it is used up or has expired.
    """
    row = tx.execute(
        update(enrollment_token)
        .where(
            enrollment_token.c.id == token_id,
            enrollment_token.c.uses_left > 0,
            enrollment_token.c.expires_at > now,
        )
        .values(uses_left=enrollment_token.c.uses_left - 1)
        .returning(enrollment_token.c.labels)
    ).first()
    return None if row is None else dict(row[0])


def add_api(
    tx: Transaction,
    *,
    token_id: str,
    name: str,
    secret_sha256: str,
    now: datetime,
    expires_at: datetime | None,
) -> None:
    """Store an API token."""
    tx.execute(
        insert(api_token).values(
            id=token_id,
            name=name,
            secret_sha256=secret_sha256,
            created_at=now,
            expires_at=expires_at,
        )
    )


_NOW = bindparam("now", type_=api_token.c.expires_at.type)
# Built once: every request asks it.
_LIVE = select(api_token.c.name, api_token.c.secret_sha256).where(
    api_token.c.id == bindparam("of"),
    api_token.c.revoked_at.is_(None),
    or_(api_token.c.expires_at.is_(None), api_token.c.expires_at > _NOW),
)


def live_api(tx: Transaction, token_id: str, now: datetime) -> tuple[str, str] | None:
    """Return (name, hash of the secret) of an API token that is neither expired nor revoked."""
    row = tx.execute(_LIVE, {"of": token_id, "now": now}).first()
    return None if row is None else (row[0], row[1])


def revoke_api(tx: Transaction, name: str, now: datetime) -> int:
    """Revoke every live API token of this name; return how many."""
    return tx.execute(
        update(api_token)
        .where(api_token.c.name == name, api_token.c.revoked_at.is_(None))
        .values(revoked_at=now)
    ).rowcount
