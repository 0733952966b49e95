"""What devices ask for: an identity, manifests, and the bytes that they were offered."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from agent.protocol.enrollment import EnrollRequest
from agent.protocol.errors import MalformedError
from control_plane.api.bytes import checked_digest, give
from control_plane.bootstrap import Application
from control_plane.domain.device import DeviceId
from control_plane.services import enrollment

routes = APIRouter(prefix="/device/v1", tags=["device side"])

MAX_ENROLL = 65_536


async def _body(request: Request) -> bytes:
    return await request.body()


def _application(request: Request) -> Application:
    application: Application = request.app.state.application
    return application


def _device(request: Request) -> DeviceId:
    device: DeviceId = request.state.device
    return device


App = Annotated[Application, Depends(_application)]
Device = Annotated[DeviceId, Depends(_device)]


@routes.post("/enroll", status_code=201)
def enroll(application: App, body: Annotated[bytes, Depends(_body)]) -> Response:
    """Trade a token and a certificate request for an identity."""
    if len(body) > MAX_ENROLL:
        raise MalformedError(f"EnrollRequest of {len(body)} bytes; the limit is {MAX_ENROLL}")
    try:
        request = msgspec.json.decode(body, type=EnrollRequest)
    except (msgspec.MsgspecError, ValueError) as error:
        raise MalformedError(f"EnrollRequest: {error}") from error
    with application.scope("device") as scope:
        reply = enrollment.enroll(scope, request)
    return Response(msgspec.json.encode(reply), 201, media_type="application/json")


@routes.get("/ca")
def ca(application: App) -> Response:
    """Return the fleet CA's certificate; a device compares it with its token."""
    return Response(application.keyring.ca_pem, media_type="application/x-pem-file")


@routes.get("/bundles/{digest}")
def bundle(application: App, device: Device, digest: str) -> Response:
    """Return the signed manifest of a bundle that this device was offered."""
    with application.reading(f"device:{device}") as scope:
        envelope = enrollment.bundle_envelope(scope, device, checked_digest(digest))
    return Response(envelope, headers={"ETag": f'"{digest}"'}, media_type="application/json")


@routes.get("/blobs/{sha256}")
@routes.head("/blobs/{sha256}", include_in_schema=False)
def blob(application: App, device: Device, request: Request, sha256: str) -> Response:
    """Return bytes that this device was offered; ranges resume a broken download."""
    digest = checked_digest(sha256)
    # The transaction ends before the first byte: a slow download holds no connection.
    with application.reading(f"device:{device}") as scope:
        enrollment.authorize_blob(scope, device, digest)
    return give(request, application.blobs, digest)
