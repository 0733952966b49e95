"""The scheduler: Celery's beat, with its schedule in memory, since the database knows the rest."""

import threading

from celery import beat

from control_plane.bootstrap import Application
from control_plane.jobs.app import make_celery
from control_plane.jobs.stopping import stop_on_signals, watch
from control_plane.observability import logger

STOP_S = 3.0

log = logger(__name__)


class Scheduler:
    """Sends the ticks from a thread.

    Args:
        app: the process's parts.
    """

    def __init__(self, app: Application) -> None:
        celery = make_celery(app.settings)
        self._service = beat.Service(
            celery, max_interval=app.settings.tick_s, scheduler_cls=beat.Scheduler
        )
        self._thread = threading.Thread(target=self._service.start, name="scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self._service.stop()
        self._thread.join(STOP_S)


def run_scheduler(app: Application, *, stop: threading.Event | None = None) -> None:
    """Send ticks until SIGTERM, SIGINT or `stop`.

    Raises:
        RuntimeError: the scheduler ended by itself.
    """
    stop = stop or stop_on_signals()
    scheduler = Scheduler(app)
    scheduler.start()
    log.info("scheduler.started", tick_s=app.settings.tick_s)
    watch(stop, lambda: scheduler.alive)
    scheduler.stop()
    log.info("scheduler.stopped")
