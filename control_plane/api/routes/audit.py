"""The audit log: who did what, when and why."""

from fastapi import APIRouter

from control_plane.api.call import Listing, Reading
from control_plane.domain.paging import Page
from control_plane.services import audit
from control_plane.services.audit import AuditEntry

routes = APIRouter(prefix="/api/v1/audit", tags=["audit"])


@routes.get("")
def list_audit(
    call: Reading,
    page: Listing,
) -> Page[AuditEntry]:
    """List changes, newest first."""
    return call.read(lambda scope: audit.list_audit(scope, **page.query))
