"""Blueprints: the hardware classes."""

from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi.responses import Response

from control_plane.api.call import IfMatch, Paging, Reading, Writing, check_revision, etag_of
from control_plane.domain.paging import Page
from control_plane.services import blueprint_document, blueprints, documents
from control_plane.services.blueprints import BlueprintView
from control_plane.services.scope import Scope

routes = APIRouter(prefix="/api/v1/blueprints", tags=["blueprints"])


@routes.get("")
def list_blueprints(call: Reading, page: Paging) -> Page[BlueprintView]:
    """List blueprints."""
    return call.read(lambda scope: blueprints.list_blueprints(scope, **page.query))


@routes.get("/{name}")
def get_blueprint(name: str, call: Reading, response: Response) -> BlueprintView:
    """Return one blueprint."""
    view = call.read(lambda scope: blueprints.get(scope, name))
    response.headers.update(etag_of(view))
    return view


@routes.put("/{name}", response_model=BlueprintView)
def put_blueprint(
    name: str, document: Annotated[dict[str, Any], Body()], call: Writing, if_match: IfMatch
) -> Response:
    """Apply a Blueprint document; the same document again changes nothing."""
    documents.check_name(document, name)
    wanted = blueprint_document.parse(document)

    def work(scope: Scope) -> BlueprintView:
        if if_match is not None:
            check_revision(blueprints.get(scope, name).revision, if_match)
        return blueprints.apply(scope, wanted)

    return call.write(work)
