"""Sends what waits for webhooks, from a thread of its own: a slow receiver delays no device."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import httpx

from control_plane.bootstrap import Application
from control_plane.gateway.outage import OutageError, reading, transaction
from control_plane.observability import logger
from control_plane.services import webhooks
from control_plane.services.webhooks import Answer, Letter
from control_plane.store import webhooks as store

POLL_S = 1.0
BATCH = 16
TIMEOUT_S = 15.0
STOP_S = TIMEOUT_S + 5.0

log = logger(__name__)


class Courier:
    """The thread; a context manager. Any number of them share the work: each takes its own.

    Args:
        app: the application, opened.
        stop: set to end it; a request under way is waited for.
    """

    def __init__(self, app: Application, stop: threading.Event) -> None:
        self._app = app
        self._stop = stop
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        # A redirect would carry what we signed to somebody who was not named.
        with (
            httpx.Client(timeout=TIMEOUT_S, follow_redirects=False) as client,
            ThreadPoolExecutor(BATCH, thread_name_prefix="courier") as pool,
        ):
            while not self._stop.is_set():
                try:
                    sent = self._round(client, pool)
                except OutageError as error:
                    log.warning("courier.database_away", error=str(error)[:500])
                    sent = 0
                if sent == 0:
                    self._stop.wait(POLL_S)

    def _round(self, client: httpx.Client, pool: ThreadPoolExecutor) -> int:
        with reading(self._app) as scope:
            if not store.pending(scope.tx, scope.now):
                return 0
        with transaction(self._app) as scope:
            letters = webhooks.take_due(scope, limit=BATCH)
        answers = list(pool.map(lambda letter: send(client, letter), letters))
        with transaction(self._app) as scope:
            for letter, answer in zip(letters, answers, strict=True):
                webhooks.settle(scope, letter.delivery, answer)
                if not answer.accepted:
                    log.warning(
                        "courier.refused",
                        webhook=letter.delivery.webhook_id,
                        event_id=letter.delivery.event_id,
                        attempt=letter.delivery.attempt,
                        status=answer.status,
                        answer=answer.text,
                    )
        return len(letters)


def send(client: httpx.Client, letter: Letter) -> Answer:
    """Make one attempt; never raises. Nothing of the answer is read but its status."""
    try:
        with client.stream(
            "POST", letter.url, content=letter.delivery.body, headers=letter.headers
        ) as answer:
            return Answer(answer.status_code, answer.reason_phrase[:100])
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Answer(0, f"{type(error).__name__}: {error}"[:300])
