"""Bundles and the keys that vouch for them, for people who verify on their own."""

import msgspec
from fastapi import APIRouter
from fastapi.responses import Response

from control_plane.api.bytes import checked_digest
from control_plane.api.call import Reading
from control_plane.domain.errors import NotFoundError
from control_plane.store import bundles

routes = APIRouter(prefix="/api/v1", tags=["bundles"])


@routes.get("/bundles/{digest}")
def get_bundle(digest: str, call: Reading) -> Response:
    """Return a bundle's signed manifest, exactly as devices get it."""
    wanted = checked_digest(digest)
    envelope = call.read(lambda scope: bundles.envelope(scope.tx, wanted))
    if envelope is None:
        raise NotFoundError(f"no bundle {digest}")
    return Response(envelope, headers={"ETag": f'"{digest}"'}, media_type="application/json")


@routes.get("/keys")
def get_keys(call: Reading) -> Response:
    """Return the public keys that devices are given at enrolment."""
    trusted = call.application.keyring.trusted_keys()
    return Response(msgspec.json.encode(trusted), media_type="application/json")
