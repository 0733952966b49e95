"""Builds and the artifacts that they tried."""

from fastapi import APIRouter
from fastapi.responses import Response

from control_plane.api.call import Paging, Reading, Writing
from control_plane.api.schemas import BuildRequest
from control_plane.domain.paging import MAX_LIMIT, Page
from control_plane.services import blueprints, builds
from control_plane.services.builds import ArtifactView, BuildView
from control_plane.services.scope import Scope

routes = APIRouter(prefix="/api/v1", tags=["builds"])


@routes.post("/builds", status_code=202, response_model=Page[BuildView])
def request_builds(wanted: BuildRequest, call: Writing) -> Response:
    """Ask for builds of a model version; workers take them up."""

    def work(scope: Scope) -> Page[BuildView]:
        names = wanted.blueprints or _every_blueprint(scope)
        return Page(
            [
                builds.request(
                    scope,
                    wanted.model,
                    wanted.version,
                    name,
                    recipe=wanted.recipe,
                    waiver=wanted.waiver,
                )
                for name in names
            ]
        )

    return call.write(work, status=202)


@routes.get("/builds")
def list_builds(
    call: Reading,
    page: Paging,
    model: str = "",
    version: str = "",
) -> Page[BuildView]:
    """List builds, newest first."""
    return call.read(
        lambda scope: builds.list_builds(scope, model=model, version=version, **page.query)
    )


@routes.get("/builds/{build}")
def get_build(build: str, call: Reading) -> BuildView:
    """Return one build."""
    return call.read(lambda scope: builds.get_build(scope, build))


@routes.get("/artifacts")
def list_artifacts(
    call: Reading,
    page: Paging,
    model: str = "",
    version: str = "",
    blueprint: str = "",
) -> Page[ArtifactView]:
    """List every recipe tried, accepted or not, with its numbers."""
    return call.read(
        lambda scope: builds.list_artifacts(
            scope, model=model, version=version, blueprint=blueprint, **page.query
        )
    )


def _every_blueprint(scope: Scope) -> list[str]:
    return [view.name for view in blueprints.list_blueprints(scope, limit=MAX_LIMIT).items]
