"""Chromium as Debian ships it, driven by Playwright, and a live server for it to visit."""

import asyncio
import gzip
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import uvicorn
from playwright.sync_api import Browser, Page, Response, sync_playwright

from control_plane.api.main import create_app
from control_plane.bootstrap import Application
from tests.support.services import MissingServiceError, free_port

START_S = 60.0
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str:
    """Return the path of a Chromium on this machine; none is ever downloaded."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise MissingServiceError("chromium is not installed; on Debian: apt-get install chromium")


@contextmanager
def browser() -> Iterator[Browser]:
    """Open a headless browser."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        yield opened
        opened.close()


class LiveServer:
    """The real app on a real port, in a thread; can stop and start again on the same port."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Serve; returns once it does."""
        ready = threading.Event()
        config = uvicorn.Config(
            create_app(self._application),
            host="127.0.0.1",
            port=self.port,
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
        self._server = _Announced(config, ready)
        self._thread = threading.Thread(target=self._serve, name="live server")
        self._thread.start()
        assert ready.wait(START_S), "the server did not start"
        return self

    def stop(self) -> None:
        """Stop, streams included."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(START_S)
        assert not self._thread.is_alive(), "the server did not stop"
        self._server = self._thread = None

    def _serve(self) -> None:
        assert self._server is not None
        asyncio.run(self._server.serve())


class _Announced(uvicorn.Server):
    """A server that says when it serves."""

    def __init__(self, config: uvicorn.Config, ready: threading.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets=sockets)  # type: ignore[arg-type]
        self._ready.set()


class Watched:
    """A page whose console, errors and requests are kept."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.answer: Response | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on(
            "console", lambda said: self.errors.append(said.text) if said.type == "error" else None
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        self._responses: list[Response] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("response", self._keep)

    def compressed_bytes(self) -> dict[str, int]:
        """Return what each file would weigh if the proxy in front compressed it."""
        return {said.url: len(gzip.compress(said.body())) for said in self._responses}

    def _keep(self, response: Response) -> None:
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            self._responses.append(response)
