"""The pages: each is a full page, and the same fragment as a live stream for its open tabs."""

from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from mimetypes import guess_type
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import (
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from control_plane.bootstrap import Application
from control_plane.dashboard import pages, rollout_page, words
from control_plane.dashboard.live import Live
from control_plane.domain.errors import (
    ConflictError,
    FlotillaError,
    InvalidError,
    NotFoundError,
    TooSlowError,
)
from control_plane.services import rollouts
from control_plane.services.rollout_views import RolloutView
from control_plane.services.scope import Scope

HERE = Path(__file__).parent
STATIC = HERE / "static"
MOST_REASON = 500
MOST_DIGITS = 16
STATIC_AGE_S = int(timedelta(hours=1).total_seconds())

Page = Callable[[Scope, "Where"], dict[str, Any]]


class Where:
    """What a page shows: a name from the path; a filter, an order and a cursor from the query."""

    def __init__(
        self,
        name: str = "",
        filter: str = "",  # noqa: A002 - the query's name
        cursor: str = "",
        sort: str = "",
    ) -> None:
        self.name, self.filter, self.cursor, self.sort = name, filter, cursor, sort

    @property
    def query(self) -> str:
        return words.query(filter=self.filter, sort=self.sort, cursor=self.cursor)


class Renderer:
    """Templates over services: one function a page, read in one transaction."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=select_autoescape(),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals.update(pages.TEMPLATE_GLOBALS)

    def page(self, shown: "_Shown", where: Where, actor: str) -> str:
        """Return the whole page."""
        context = self._context(shown.load, where, actor)
        template = self._templates.get_template(f"{shown.template}.html")
        return template.render(section=shown.section, actor=actor, **context)

    def fragment(self, shown: "_Shown", where: Where, actor: str) -> str:
        """Return only what lives; the same for every actor, since tabs share it."""
        context = self._context(shown.load, where, actor)
        return self._templates.get_template(f"{shown.template}_live.html").render(**context)

    def refusal(self, shown: "_Shown", where: Where, actor: str, error: FlotillaError) -> str:
        """Return a page that says why another one is not shown."""
        back = shown.path.removesuffix("/{name}") or "/"
        kind = "rollout" if shown.section == "/rollouts" else "device"
        title = f"There is no such {kind}"
        if isinstance(error, InvalidError):
            title = "This filter cannot be read" if error.field == "filter" else "Not shown"
        if isinstance(error, TooSlowError):
            title = "This took too long"
        return self.message(title, error, back, actor, where.filter)

    def message(
        self,
        title: str,
        error: FlotillaError,
        back: str,
        actor: str,
        filter: str = "",  # noqa: A002 - the query's name
    ) -> str:
        """Return a page that says why something could not be done."""
        template = self._templates.get_template("message.html")
        said = {"title": title, "message": error.message, "back": back}
        return template.render(section=back, actor=actor, filter=filter, **said)

    def _context(self, load: Page, where: Where, actor: str) -> dict[str, Any]:
        with self._application.reading(actor) as scope:
            context = {
                "now": scope.now,
                "filter": where.filter,
                "sort": where.sort,
                "cursor": where.cursor,
            }
            return context | load(scope, where)


class _Shown(NamedTuple):
    path: str
    template: str
    section: str
    load: Page


PAGES: dict[str, tuple[str, str, Page]] = {
    # path: template, section of the navigation, loader
    "/": ("overview", "/", pages.overview),
    "/devices": ("devices", "/devices", pages.devices),
    "/devices/{name}": ("device", "/devices", pages.device),
    "/rollouts": ("rollouts", "/rollouts", pages.rollout_list),
    "/rollouts/{name}": ("rollout", "/rollouts", pages.rollout),
    "/artifacts": ("artifacts", "/artifacts", pages.artifacts),
}


def router(application: Application, require_user: Callable[[Request], str]) -> APIRouter:
    """Return the dashboard's routes.

    Args:
        application: the parts of this process.
        require_user: returns who asks, or raises `UnauthenticatedError`.
    """
    routes = APIRouter(include_in_schema=False)
    renderer, live = Renderer(application), Live()
    for path, (template, section, load) in PAGES.items():
        shown = _Shown(path, template, section, load)
        _add_page(routes, renderer, live, shown, require_user)
    _add_verbs(routes, application, renderer, require_user)
    _add_static(routes)
    return routes


def _add_page(
    routes: APIRouter,
    renderer: Renderer,
    live: Live,
    page: _Shown,
    require_user: Callable[[Request], str],
) -> None:
    path = page.path

    def show(request: Request, actor: Annotated[str, Depends(require_user)]) -> Response:
        where = _where(request)
        try:
            return HTMLResponse(renderer.page(page, where, actor))
        except _REFUSALS as error:
            return HTMLResponse(renderer.refusal(page, where, actor, error), _status(error))

    def watch(request: Request, actor: Annotated[str, Depends(require_user)]) -> Response:
        where = _where(request)
        try:
            # What cannot be shown is refused before a stream begins: one that broke off at once
            # would be asked for again and again.
            renderer.fragment(page, where, actor)
        except _REFUSALS as error:
            return PlainTextResponse(error.message, _status(error))
        events = live.events(
            f"{path}?{where.name}&{where.query}",
            lambda: renderer.fragment(page, where, actor),
        )
        # A proxy must not hold events back.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    routes.add_api_route(path, show, methods=["GET"], name=f"page {path}")
    routes.add_api_route(f"/live{path}", watch, methods=["GET"], name=f"live {path}")


_REFUSALS = (NotFoundError, InvalidError, TooSlowError)


def _status(error: FlotillaError) -> int:
    if isinstance(error, TooSlowError):
        return 503
    return 404 if isinstance(error, NotFoundError) else 422


def _where(request: Request) -> Where:
    ask = request.query_params
    name = request.path_params.get("name", "")
    return Where(name, ask.get("filter", ""), ask.get("cursor", ""), ask.get("sort", ""))


def _add_verbs(
    routes: APIRouter,
    application: Application,
    renderer: Renderer,
    require_user: Callable[[Request], str],
) -> None:
    @routes.post("/rollouts/{name}/{verb}")
    def act(
        name: str,
        verb: str,
        form: Annotated[dict[str, str], Depends(_form)],
        actor: Annotated[str, Depends(require_user)],
    ) -> Response:
        try:
            with application.scope(actor) as scope:
                after = _act(scope, name, verb, form)
        except FlotillaError as error:
            page = renderer.message("Not done", error, _page_of(name), actor)
            return HTMLResponse(page, _status_of_act(error))
        return RedirectResponse(_page_of(after), 303)


def _page_of(name: str) -> str:
    return f"/rollouts/{quote(name, safe='')}"


def _status_of_act(error: FlotillaError) -> int:
    return 409 if isinstance(error, ConflictError) else _status(error)


def _act(scope: Scope, name: str, verb: str, form: dict[str, str]) -> str:
    """Do what the form asks; return the rollout to look at then: a retry makes a new one."""
    if verb not in {v.name for v in rollout_page.VERBS}:
        raise NotFoundError(f"no verb {verb!r} for a rollout")
    reason = form.get("reason", "").strip()
    if not reason:
        raise InvalidError("give a reason: it is kept in the audit log", field="reason")
    revision = form.get("revision", "")
    if not (revision.isdecimal() and len(revision) < MOST_DIGITS):
        raise InvalidError("the form lacks the revision that you saw: load the page again")
    asked: dict[str, Any] = {"reason": reason[:MOST_REASON], "revision": int(revision)}
    if verb == "abort":
        asked["mode"] = _mode(form.get("mode", "keep"))
    if verb == "retry":
        asked["include_rejected"] = form.get("include_rejected") == "yes"
    after: RolloutView = getattr(rollouts, verb)(scope, name, **asked)
    return after.name


def _mode(said: str) -> str:
    if said not in ("keep", "revert"):
        raise InvalidError("an abort keeps or reverts: choose one", field="mode")
    return said


async def _form(request: Request) -> dict[str, str]:
    fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=8)
    return {name: values[0] for name, values in fields.items()}


def _add_static(routes: APIRouter) -> None:
    # Read once: a handful of small files, served from memory with a strong validator.
    files = {
        str(path.relative_to(STATIC)): path.read_bytes()
        for path in STATIC.rglob("*")
        if path.suffix in {".css", ".js", ".svg"}
    }

    @routes.get("/static/{path:path}")
    def static(path: str, request: Request) -> Response:
        body = files.get(path)
        if body is None:
            raise NotFoundError(f"no static file {path[:80]!r}")
        tag = f'"{sha256(body).hexdigest()[:16]}"'
        headers = {"ETag": tag, "Cache-Control": f"max-age={STATIC_AGE_S}"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        kind = guess_type(path)[0] or "application/octet-stream"
        return Response(body, media_type=kind, headers=headers)
