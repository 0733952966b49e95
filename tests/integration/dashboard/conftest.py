from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from control_plane.bootstrap import Application, utc_now
from control_plane.config import Settings
from control_plane.services import tokens
from tests.support import browser as browsers
from tests.support import databases, seed_fleet
from tests.support.browser import LiveServer, Watched

PATIENCE_MS = 20_000  # for machines that do other things; a test that is about time says its own
Visit = Callable[..., Watched]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests; each has a context of its own."""
    expect.set_options(timeout=PATIENCE_MS)
    with browsers.browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def seeded(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the database and the keys of a seeded fleet."""
    folder = tmp_path_factory.mktemp("seeded")
    databases.sqlite_copy(sqlite_template, folder)
    application = Application(Settings(data=folder))
    seed_fleet.seed(application, utc_now())
    application.close()  # which also folds the write-ahead log into the file
    return folder


@pytest.fixture(scope="session")
def shared_fleet(seeded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """A copy of the seeded fleet for tests that change nothing."""
    yield from _copy(seeded, tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def shared_server(shared_fleet: Application) -> Iterator[LiveServer]:
    """A server on the shared fleet."""
    server = LiveServer(shared_fleet).start()
    yield server
    server.stop()


@pytest.fixture
def fleet(seeded: Path, tmp_path: Path) -> Iterator[Application]:
    """A copy of the seeded fleet that a test may change."""
    yield from _copy(seeded, tmp_path)


def _copy(seeded: Path, data: Path) -> Iterator[Application]:
    databases.sqlite_copy(seeded / "flotilla.db", data)
    application = Application(Settings(data=data, keys=seeded / "keys"))
    yield application
    application.close()


@pytest.fixture
def server(fleet: Application) -> Iterator[LiveServer]:
    """A server on that copy."""
    started = LiveServer(fleet).start()
    yield started
    started.stop()


def token_of(application: Application, name: str = "ada") -> str:
    with application.scope("test") as scope:
        return tokens.create_api_token(scope, name=name)


def log_in(page: Page, application: Application, url: str) -> None:
    """Give the page's context a session, without showing a page."""
    link = f"{url}/login?token={token_of(application)}"
    assert page.request.get(link, max_redirects=0).status == 303


@pytest.fixture
def contexts(chromium: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """Make browser contexts, closed at the end."""
    made: list[BrowserContext] = []

    def make(**options: Any) -> BrowserContext:
        context = chromium.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        made.append(context)
        return context

    yield make
    for context in made:
        context.close()


def _visitor(
    application: Application, url: str, contexts: Callable[..., BrowserContext]
) -> Callable[..., Watched]:
    def visit(path: str, **options: Any) -> Watched:
        page = contexts(**options).new_page()
        log_in(page, application, url)
        watched = Watched(page)
        watched.answer = page.goto(f"{url}{path}")
        return watched

    return visit


@pytest.fixture
def look(
    shared_fleet: Application,
    shared_server: LiveServer,
    contexts: Callable[..., BrowserContext],
) -> Visit:
    """Visit a page of the shared fleet, logged in."""
    return _visitor(shared_fleet, shared_server.url, contexts)


@pytest.fixture
def visit(fleet: Application, server: LiveServer, contexts: Callable[..., BrowserContext]) -> Visit:
    """Visit a page of the fleet that this test may change, logged in."""
    return _visitor(fleet, server.url, contexts)
