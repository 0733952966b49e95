"""The HTTP process: puts routes, pages, authentication and errors together."""

from importlib.metadata import version

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response

from control_plane.api import errors, health, session
from control_plane.api.middleware import BodyLimit, Counted, SecurityHeaders
from control_plane.api.routes import (
    audit,
    blobs,
    blueprints,
    builds,
    bundles,
    device_side,
    devices,
    models,
    rollouts,
    schemas,
    webhooks,
)
from control_plane.bootstrap import Application
from control_plane.dashboard import routes as dashboard
from control_plane.domain.errors import UnauthenticatedError
from control_plane.observability import metrics_registry

_ROOMS = (
    devices,
    models,
    blobs,
    blueprints,
    builds,
    bundles,
    rollouts,
    audit,
    schemas,
    webhooks,
    device_side,
)


def create_app(application: Application) -> FastAPI:
    """Return the API and the dashboard over one application's parts."""
    app = FastAPI(
        title="Flotilla",
        version=version("flotilla"),
        summary="Ships small language models to edge fleets.",
        docs_url=None,  # its page loads scripts from other hosts, which our policy forbids
        redoc_url=None,
        dependencies=[Depends(session.authenticate)],
        # Its spans hold whole addresses, and a login link has its token in the address.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.application = application.open()
    errors.install(app)
    app.add_exception_handler(UnauthenticatedError, _who_are_you)
    registry = metrics_registry()
    app.include_router(health.router(application, registry))
    app.include_router(session.router(application))
    for room in _ROOMS:
        app.include_router(room.routes)
    app.include_router(dashboard.router(application, session.require_user))
    # The last one added is the outermost.
    app.add_middleware(BodyLimit)
    app.add_middleware(SecurityHeaders, tls=application.settings.url.startswith("https:"))
    app.add_middleware(Counted, registry=registry)
    return app


def _who_are_you(request: Request, error: Exception) -> Response:
    if session.wants_page(request):
        return session.to_login(request)
    answer = errors.answer(request, error)
    if "hx-request" in request.headers:
        answer.headers["HX-Redirect"] = "/login"
    return answer


def from_environment() -> FastAPI:
    """Return the app for a server process that is configured by its environment."""
    return create_app(Application())
