"""Devices: who they are, what they run, how they came to it; tokens to enrol more."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from control_plane.api.call import Listing, Paging, Reading, Writing
from control_plane.api.schemas import EnrollmentToken, LabelChange, Reason, TokenRequest
from control_plane.domain.paging import Page
from control_plane.services import enrollment, inventory
from control_plane.services.inventory import DeviceView, FleetSummary, HistoryEntry
from control_plane.services.scope import Scope

routes = APIRouter(prefix="/api/v1", tags=["devices"])

_ORDERS = ", ".join(inventory.ORDERS)
Sort = Annotated[
    str,
    Query(max_length=40, description=f"One of {_ORDERS}; with '-' in front, the other way."),
]


@routes.get("/devices", response_model=Page[DeviceView])
def list_devices(call: Reading, page: Listing, sort: Sort = "") -> Response:
    """List devices that match the filter."""
    return call.show(lambda scope: inventory.list_devices(scope, sort=sort, **page.query))


@routes.get("/devices:summary")
def fleet_summary(call: Reading) -> FleetSummary:
    """Return the fleet in numbers."""
    return call.read(inventory.fleet_summary)


@routes.get("/devices/{device}")
def get_device(device: str, call: Reading) -> DeviceView:
    """Return one device."""
    return call.read(lambda scope: inventory.get_device(scope, device))


@routes.get("/devices/{device}/history")
def device_history(device: str, call: Reading, page: Paging) -> Page[HistoryEntry]:
    """Return what a device ran and went through, newest first."""
    return call.read(lambda scope: inventory.device_history(scope, device, **page.query))


@routes.post("/devices/{device}:label", response_model=DeviceView)
def label_device(device: str, change: LabelChange, call: Writing) -> Response:
    """Set labels; null takes one away."""
    return call.write(
        lambda scope: inventory.label_device(scope, device, change.labels, reason=change.reason)
    )


@routes.post("/devices/{device}:quarantine", response_model=DeviceView)
def quarantine_device(device: str, why: Reason, call: Writing) -> Response:
    """Shut a device out: its reports and requests are refused, and it is offered nothing."""
    return call.write(lambda scope: inventory.quarantine(scope, device, reason=why.reason))


@routes.post("/devices/{device}:unquarantine", response_model=DeviceView)
def unquarantine_device(device: str, why: Reason, call: Writing) -> Response:
    """Let a device in again."""
    return call.write(lambda scope: inventory.unquarantine(scope, device, reason=why.reason))


@routes.post("/enrollment-tokens", status_code=201, response_model=EnrollmentToken)
def create_token(wanted: TokenRequest, call: Writing) -> Response:
    """Make a token with which devices enrol; it is shown once."""

    def work(scope: Scope) -> EnrollmentToken:
        token = enrollment.create_token(
            scope, labels=wanted.labels, uses=wanted.uses, ttl_s=wanted.ttl_s
        )
        return EnrollmentToken(token=token)

    return call.write(work, status=201)
