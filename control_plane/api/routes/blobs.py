"""Uploads: bytes by digest, so that what is there is not sent again."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from control_plane.api.bytes import checked_digest, give, take
from control_plane.api.call import Reading
from control_plane.api.schemas import StoredBlob

routes = APIRouter(prefix="/api/v1/blobs", tags=["blobs"])


@routes.put("/{sha256}", status_code=201)
def put_blob(sha256: str, request: Request, call: Reading) -> StoredBlob:
    """Store the body, which must have this SHA-256; storing it twice changes nothing."""
    application = call.application
    limit = application.settings.upload_limit_bytes
    blob = take(request, application.blobs, checked_digest(sha256), limit)
    return StoredBlob(sha256=blob.digest, size=blob.size)


@routes.get("/{sha256}")
@routes.head("/{sha256}", include_in_schema=False)
def get_blob(sha256: str, request: Request, call: Reading) -> Response:
    """Return stored bytes; ranges work. HEAD says whether they are here."""
    return give(request, call.application.blobs, checked_digest(sha256))
