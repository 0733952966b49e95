"""The worker process: builds in one thread, ticks in another, and the scheduler if it is alone."""

import threading

from celery.worker import WorkController

from control_plane.bootstrap import Application
from control_plane.jobs import tasks
from control_plane.jobs.app import BUILDS, TICKS, in_process, make_celery
from control_plane.jobs.scheduler import Scheduler
from control_plane.jobs.stopping import stop_on_signals, watch
from control_plane.observability import logger

# A build that does not end by then is left to its lease: the next worker takes it up.
STOP_S = 3.0

log = logger(__name__)


class Consumer:
    """One queue, one task at a time, in one thread.

    A build must not delay a tick, so each queue has a consumer of its own. The pool is `solo`:
    what a build needs isolated runs in a child process of its own.

    Args:
        app: the process's parts.
        queue: which queue.
    """

    def __init__(self, app: Application, queue: str) -> None:
        self._celery = make_celery(app.settings)  # its set of queues belongs to one consumer
        tasks.register(self._celery, app)
        self._worker = WorkController(
            app=self._celery,
            hostname=queue,
            queues=[queue],
            pool_cls="solo",
            concurrency=1,
            use_eventloop=False,  # Celery's event loop is one for a whole process
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )
        self._thread = threading.Thread(target=self._consume, name=queue, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no more tasks; `join` waits for the one that runs."""
        self._worker.stop()

    def join(self, timeout: float) -> bool:
        """Return whether it has ended within `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _consume(self) -> None:
        self._celery.set_current()  # of this thread: that is where a task is looked up
        self._worker.start()


class Worker:
    """The consumers of one process; with the scheduler where it is the only process.

    Args:
        app: the process's parts.
        with_scheduler: also send the ticks.
    """

    def __init__(self, app: Application, *, with_scheduler: bool) -> None:
        self._consumers = [Consumer(app, BUILDS), Consumer(app, TICKS)]
        self._scheduler = Scheduler(app) if with_scheduler else None

    def start(self) -> None:
        for consumer in self._consumers:
            consumer.start()
        if self._scheduler:
            self._scheduler.start()

    @property
    def alive(self) -> bool:
        """Whether every part still runs; if not, the process should end and be restarted."""
        parts = [consumer.alive for consumer in self._consumers]
        return all(parts) and (self._scheduler is None or self._scheduler.alive)

    def stop(self) -> bool:
        """Stop; return whether everything ended in time."""
        if self._scheduler:
            self._scheduler.stop()
        for consumer in self._consumers:
            consumer.stop()
        ended = [consumer.join(STOP_S) for consumer in self._consumers]
        return all(ended)


def run_worker(
    app: Application, *, with_scheduler: bool, stop: threading.Event | None = None
) -> None:
    """Work until SIGTERM, SIGINT or `stop`.

    Args:
        app: the process's parts.
        with_scheduler: also send the ticks; always so with an in-process queue, since no other
            process could.
        stop: ends it; None for the signals.

    Raises:
        RuntimeError: a part ended by itself; whoever supervises us should start us again.
    """
    stop = stop or stop_on_signals()
    worker = Worker(app, with_scheduler=with_scheduler or in_process(app.settings))
    worker.start()
    log.info("worker.started", queue=app.settings.queue_url.split("@")[-1])
    watch(stop, lambda: worker.alive)
    ended = worker.stop()
    log.info("worker.stopped", build_left_to_its_lease=not ended)
