"""Who asks: API tokens, browser sessions and device secrets; every route is closed by default."""

import html
from typing import Annotated
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.security import HTTPBearer

from control_plane.bootstrap import Application
from control_plane.domain.errors import ForbiddenError, UnauthenticatedError
from control_plane.services import enrollment, tokens

COOKIE = "flotilla_session"
SESSION_S = 12 * 3600
# The only routes that answer strangers. Everything else asks for a token.
PUBLIC = frozenset(
    {"/healthz", "/readyz", "/metrics", "/login", "/logout", "/device/v1/enroll", "/device/v1/ca"}
)
STATIC = "/static/"
_SAFE = ("GET", "HEAD", "OPTIONS")

_bearer = HTTPBearer(auto_error=False, description="An API token; devices: their secret.")
Credentials = Annotated[object, Depends(_bearer)]  # only so that /openapi.json shows it


def authenticate(request: Request, _credentials: Credentials) -> None:
    """Let a request pass only if its route is public or it says who asks.

    Sets ``request.state.actor``, and for a device ``request.state.device``.
    """
    path = getattr(request.scope.get("route"), "path", "")
    if path in PUBLIC or path.startswith(STATIC):
        return
    application: Application = request.app.state.application
    if path.startswith("/device/v1/"):
        with application.reading("device") as scope:
            device = enrollment.authenticate_device(scope, _bearer_token(request))
        request.state.device = device
        request.state.actor = f"device:{device}"
        return
    token = _bearer_token(request)
    if not token:
        token = request.cookies.get(COOKIE, "")
        _refuse_other_sites(request)
    with application.reading("") as scope:
        request.state.actor = tokens.authenticate_api(scope, token)


def require_user(request: Request) -> str:
    """Return who asks; for routes of other rooms, which `authenticate` has already checked."""
    actor: str | None = getattr(request.state, "actor", None)
    if actor is None:
        raise UnauthenticatedError("no session: log in at /login")
    return actor


def wants_page(request: Request) -> bool:
    """Return whether a person in a browser asks, who is better sent to the login page."""
    path = request.url.path
    # A stream that was sent to the login page would take it for an empty stream, for ever.
    is_program = path.startswith(("/api/", "/device/", "/live/"))
    return not is_program and "text/html" in request.headers.get("accept", "")


def to_login(request: Request) -> Response:
    """Send a browser to the login page, and from there back to where it wanted to go."""
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/login?next={quote(target, safe='')}", 303)


def router(application: Application) -> APIRouter:
    """Return the routes of the login page."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/login")
    def login(token: str = "", next: str = "/") -> Response:  # noqa: A002 - the query's name
        if token:
            return _open_session(application, token, next)
        return HTMLResponse(_page(next))

    @routes.post("/login")
    def login_form(form: Annotated[dict[str, str], Depends(_form)]) -> Response:
        try:
            return _open_session(application, form.get("token", ""), form.get("next", "/"))
        except UnauthenticatedError as error:
            return HTMLResponse(_page(form.get("next", "/"), error.message), 401)

    @routes.post("/logout")
    def logout(request: Request) -> Response:
        _refuse_other_sites(request)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return routes


def _open_session(application: Application, token: str, target: str) -> Response:
    with application.reading("") as scope:
        actor = tokens.authenticate_api(scope, token.strip())
    with application.scope(actor) as scope:
        # The cookie holds a token of its own, short-lived: a stolen cookie is not the API token.
        session = tokens.create_api_token(scope, name=actor, ttl_s=SESSION_S)
    answer = RedirectResponse(_local(target), 303)
    answer.set_cookie(
        COOKIE,
        session,
        max_age=SESSION_S,
        httponly=True,
        samesite="strict",
        secure=application.settings.url.startswith("https:"),
    )
    return answer


def _bearer_token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _refuse_other_sites(request: Request) -> None:
    # A browser sends the cookie by itself; a form on another site must not act with it.
    if request.method in _SAFE:
        return
    origin = request.headers.get("origin", "")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") or (
        origin and urlsplit(origin).netloc != request.headers.get("host", "")
    ):
        raise ForbiddenError("this change was asked for by a page of another site")


async def _form(request: Request) -> dict[str, str]:
    fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=8)
    return {name: values[0] for name, values in fields.items()}


def _local(target: str) -> str:
    """Return `target` if it is a path of ours, so that a link cannot send people elsewhere."""
    parts = urlsplit(target)
    safe = target.startswith("/") and not target.startswith("//") and "\\" not in target
    return target if safe and not parts.netloc and target.isprintable() else "/"


def _page(target: str, error: str = "") -> str:
    said = f'<p role="alert">{html.escape(error)}</p>' if error else ""
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Log in - Flotilla</title><link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/app.css"><script src="/static/shell.js"></script></head>
<body class="login"><main><h1>Flotilla</h1>{said}
<form method="post" action="/login">
<input type="hidden" name="next" value="{html.escape(_local(target))}">
<label for="token">API token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button>
</form>
<p>The token of a local control plane is in <code>admin.token</code> in its data folder.</p>
</main></body></html>
"""
