"""API tokens: ``fla_<id>_<secret>``, stored hashed."""

import hashlib
import hmac
import re
import secrets
from datetime import timedelta

from control_plane.domain.errors import InvalidError, NotFoundError, UnauthenticatedError
from control_plane.services import audit
from control_plane.services.scope import Scope
from control_plane.store import tokens as store

_TOKEN = re.compile(r"fla_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")


def create_api_token(scope: Scope, *, name: str, ttl_s: float | None = None) -> str:
    """Make a token for the API; the only time that its secret is seen.

    Args:
        scope: the scope.
        name: who will use it; appears in the audit trail.
        ttl_s: seconds until it expires; None for never.
    """
    if not _NAME.fullmatch(name):
        raise InvalidError(
            f"{name[:80]!r}: use up to 128 letters, digits, '.', '_', '@', '-'", field="name"
        )
    if ttl_s is not None and ttl_s <= 0:
        raise InvalidError(f"{ttl_s} is not a time to live; use seconds above 0", field="ttl_s")
    token_id, secret = scope.new_id()[:16], secrets.token_urlsafe(32)
    store.add_api(
        scope.tx,
        token_id=token_id,
        name=name,
        secret_sha256=sha256(secret),
        now=scope.now,
        expires_at=None if ttl_s is None else scope.now + timedelta(seconds=ttl_s),
    )
    audit.record(scope, action="token.create", object_kind="token", object_name=name)
    return f"fla_{token_id}_{secret}"


def authenticate_api(scope: Scope, token: str) -> str:
    """Return the name behind a token; `UnauthenticatedError` for any that is not live."""
    match = _TOKEN.fullmatch(token)
    found = store.live_api(scope.tx, match[1], scope.now) if match else None
    if match is None or found is None or not hmac.compare_digest(found[1], sha256(match[2])):
        raise UnauthenticatedError("the API token is unknown, expired or revoked")
    return found[0]


def revoke_api_token(scope: Scope, name: str, *, reason: str = "") -> None:
    """Revoke every live token of this name."""
    if store.revoke_api(scope.tx, name, scope.now) == 0:
        raise NotFoundError(f"no live API token is named {name[:80]!r}")
    audit.record(scope, action="token.revoke", object_kind="token", object_name=name, reason=reason)


def sha256(secret: str) -> str:
    """Return what is stored of a secret; it has 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()
