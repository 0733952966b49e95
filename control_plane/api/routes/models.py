"""Models and their immutable versions."""

from fastapi import APIRouter
from fastapi.responses import Response

from control_plane.api.call import Paging, Reading, Writing
from control_plane.api.schemas import Invalidation, VersionRequest
from control_plane.domain.model import SourceFile
from control_plane.domain.paging import Page
from control_plane.services import invalidation, models
from control_plane.services.invalidation import Invalidated
from control_plane.services.models import Inspected, ModelVersionView, ModelView
from control_plane.services.scope import Scope

routes = APIRouter(prefix="/api/v1/models", tags=["models"])


@routes.get("")
def list_models(call: Reading, page: Paging) -> Page[ModelView]:
    """List models."""
    return call.read(lambda scope: models.list_models(scope, **page.query))


@routes.get("/{model}/versions")
def list_versions(model: str, call: Reading, page: Paging) -> Page[ModelVersionView]:
    """List the versions of a model."""
    return call.read(lambda scope: models.list_versions(scope, model, **page.query))


@routes.post("/{model}/versions", status_code=201, response_model=ModelVersionView)
def register_version(model: str, wanted: VersionRequest, call: Writing) -> Response:
    """Register a version whose files were uploaded before; the same files again change nothing."""
    files = [SourceFile(file.path, file.size, file.sha256) for file in wanted.files]
    version, parent = wanted.version, wanted.parent
    source: Inspected | None = None
    if call.read(lambda scope: models.is_new(scope, model, version, files, parent=parent)):
        source = call.read(lambda scope: models.inspect(scope, files))

    def register(scope: Scope) -> ModelVersionView:
        if source is None:
            return models.get_version(scope, model, version)
        return models.register(scope, model, version, source, parent=parent)

    return call.write(
        register,
        status=201,
        location=lambda view: f"/api/v1/models/{view.model}/versions/{view.version}",
    )


@routes.get("/{model}/versions/{version}")
def get_version(model: str, version: str, call: Reading) -> ModelVersionView:
    """Return one version."""
    return call.read(lambda scope: models.get_version(scope, model, version))


@routes.post("/{model}/versions/{version}:invalidate", response_model=Invalidated)
def invalidate_version(model: str, version: str, why: Invalidation, call: Writing) -> Response:
    """Call a version invalid for good: its rollouts end, nothing uses or is served it again."""
    return call.write(
        lambda scope: invalidation.invalidate(
            scope, model, version, reason=why.reason, devices=why.devices
        )
    )
