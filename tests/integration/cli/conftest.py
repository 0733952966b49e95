import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn

from control_plane.api.main import create_app
from control_plane.bootstrap import Application
from tests.integration.api.support import api_token
from tests.integration.cli.support import Flotilla


class _Server(uvicorn.Server):
    """A server that says when it serves."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@pytest.fixture
def url(sqlite_app: Application) -> Iterator[str]:
    """The address of a real API on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            create_app(sqlite_app), log_config=None, access_log=False, ws="none", lifespan="off"
        )
        server = _Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert server.ready.wait(30)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture
def flotilla(url: str, sqlite_app: Application, monkeypatch: pytest.MonkeyPatch) -> Flotilla:
    """The command line, against that API, as ada."""
    monkeypatch.setenv("FLOTILLA_URL", url)
    monkeypatch.setenv("FLOTILLA_TOKEN", api_token(sqlite_app))
    monkeypatch.delenv("FLOTILLA_CA", raising=False)
    return Flotilla()
