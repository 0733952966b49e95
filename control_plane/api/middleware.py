"""What every answer and every request passes: headers, a size limit, counting."""

from time import perf_counter
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.api.errors import problem

MAX_BODY = 1 << 20  # bytes of a request that is not an upload
UPLOADS = "/api/v1/blobs/"

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; object-src 'none'; "
    "form-action 'self'; frame-ancestors 'none'; img-src 'self' data:",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: a browser would send "Origin: null" with our own forms, and be refused.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class SecurityHeaders:
    """Adds the strict headers; a page that needs less strict ones is wrong."""

    def __init__(self, app: ASGIApp, *, tls: bool) -> None:
        self.app = app
        self.headers = dict(_HEADERS)
        if tls:
            self.headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def decorated(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, decorated)


class BodyLimit:
    """Refuses large bodies before a byte is read; uploads have their own limit."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = _refusal(scope) if scope["type"] == "http" else None
        await (self.app if refused is None else refused)(scope, receive, send)


def _refusal(scope: Scope) -> ASGIApp | None:
    if scope["path"].startswith(UPLOADS):
        return None
    headers = Headers(scope=scope)
    if "transfer-encoding" in headers:
        return problem(411, "length-required", "send a Content-Length", field="Content-Length")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY:
        return problem(
            413,
            "too-large",
            f"a body of {length[:20]} bytes; the limit is {MAX_BODY}",
            field="Content-Length",
        )
    return None


class Counted:
    """Counts requests by method, route and status: labels that cannot grow without bound."""

    def __init__(self, app: ASGIApp, *, registry: CollectorRegistry) -> None:
        self.app = app
        self.requests = Counter(
            "flotilla_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "flotilla_http_request_seconds",
            "Time to the end of the answer.",
            ("method", "route"),
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, started = 500, perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            # An unknown path or method would be a label that strangers choose.
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if route != "unmatched" else "any"
            self.requests.labels(method, route, str(status)).inc()
            self.seconds.labels(method, route).observe(perf_counter() - started)
