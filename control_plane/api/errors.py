"""Problem documents (RFC 9457); the only place that knows which error has which status code."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from agent.protocol.errors import ProtocolError
from agent.protocol.errors import TooLargeError as ProtocolTooLargeError
from control_plane.blobs import BlobError
from control_plane.domain.errors import (
    ConflictError,
    FlotillaError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NotFoundError,
    TooLargeError,
    TooSlowError,
    UnauthenticatedError,
)
from control_plane.observability import logger

MEDIA_TYPE = "application/problem+json"

_log = logger(__name__)


class PreconditionFailedError(FlotillaError):
    """If-Match names another revision than the stored one."""

    code = "precondition-failed"


class RangeNotSatisfiableError(FlotillaError):
    """The range starts after the last byte."""

    code = "range-not-satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(f"the range starts after the last of {size} bytes", field="Range")
        self.size = size


# Most special first: the first class that fits decides.
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotFoundError, 404),
    (InvalidError, 422),
    (ConflictError, 409),
    (GoneError, 410),
    (UnauthenticatedError, 401),
    (ForbiddenError, 403),
    (TooLargeError, 413),
    (TooSlowError, 503),
    (PreconditionFailedError, 412),
    (RangeNotSatisfiableError, 416),
    (ProtocolTooLargeError, 413),
    (ProtocolError, 422),
)

_HTTP_CODES = {404: "not-found", 405: "method-not-allowed", 400: "bad-request"}


def status_of(error: Exception) -> int:
    """Return the HTTP status of one of our errors; 500 for a stranger."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    field: str = "",
    errors: list[dict[str, str]] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return a problem document.

    Args:
        status: the HTTP status.
        code: stable, for programs.
        detail: for people: what, where, what to do.
        field: dotted path of what is wrong in the input; empty if not one field.
        errors: every fault found, where there are several.
        headers: more response headers.
    """
    body: dict[str, Any] = {
        "type": f"urn:flotilla:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    if field:
        body["field"] = field
    if errors:
        body["errors"] = errors
    return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""
    app.add_exception_handler(FlotillaError, answer)
    app.add_exception_handler(ProtocolError, _wire)
    app.add_exception_handler(BlobError, _no_blob)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def dotted(location: tuple[int | str, ...]) -> str:
    """Return pydantic's location as people write it: ``spec.waves[0].percent``."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def answer(_request: Request, error: Exception) -> Response:
    """Return the problem document of one of our errors."""
    assert isinstance(error, FlotillaError)  # noqa: S101 - Starlette types handlers by Exception
    headers: dict[str, str] = {}
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RangeNotSatisfiableError):
        headers["Content-Range"] = f"bytes */{error.size}"
    return problem(status_of(error), error.code, error.message, field=error.field, headers=headers)


def _wire(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ProtocolError)  # noqa: S101 - as above
    return problem(status_of(error), error.code.replace("_", "-"), str(error))


def _no_blob(_request: Request, error: Exception) -> Response:
    return problem(404, "not-found", str(error), field="sha256")


def _validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    faults = [
        # The first part says body, query or path; the rest is what the caller wrote.
        {"field": dotted(tuple(e["loc"][1:])) or str(e["loc"][0]), "message": _plain(e)}
        for e in error.errors()
    ]
    first = faults[0]
    return problem(
        422, "invalid", f"{first['field']}: {first['message']}", field=first["field"], errors=faults
    )


def _plain(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "unknown field"
    if fault["type"] == "json_invalid":
        return f"not JSON: {fault['ctx'].get('error', '')}"
    return str(fault["msg"]).removeprefix("Value error, ")


def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    code = _HTTP_CODES.get(error.status_code, "http")
    headers = dict(error.headers) if error.headers else None
    return problem(error.status_code, code, str(error.detail), headers=headers)


def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("api.failed", method=request.method, path=request.url.path, exc_info=error)
    return problem(500, "internal", "the server failed; its log says why")
