"""Celery's configuration: the database decides, the queue may lose or repeat."""

from datetime import timedelta
from typing import Any

from celery import Celery
from kombu import Queue

from control_plane.config import Settings
from control_plane.jobs import redis_transport

BUILDS = "flotilla.builds"
TICKS = "flotilla.ticks"

# A message that waited longer is pointless: the scheduler has sent a newer one. Generous, since
# the clocks of two machines are compared.
EXPIRES_S = 30
# A build that nobody finished is handed out again after its time limit and this.
GRACE_S = 300
# How often the waiting consumer looks into an in-process queue.
POLL_S = 0.05


def make_celery(settings: Settings) -> Celery:
    """Return a Celery application without tasks; each worker needs its own."""
    if not in_process(settings):
        redis_transport.install()
    celery = Celery("flotilla", broker=settings.queue_url, set_as_current=False)
    celery.conf.update(
        task_queues=[Queue(BUILDS), Queue(TICKS)],
        task_default_queue=TICKS,
        task_routes={"build.*": {"queue": BUILDS}},
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_transport(settings),
        beat_schedule=_schedule(settings.tick_s),
        beat_max_loop_interval=settings.tick_s,
    )
    return celery


def in_process(settings: Settings) -> bool:
    """Return whether the queue ends at this process."""
    return settings.queue_url.startswith("memory:")


def _transport(settings: Settings) -> dict[str, Any]:
    if in_process(settings):
        return {"polling_interval": POLL_S}
    return {
        "visibility_timeout": settings.build_time_limit_s + GRACE_S,
        # The defaults multiply to a sweep every 100 s.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }


def _schedule(tick_s: float) -> dict[str, Any]:
    periods = {
        "rollouts.tick": tick_s,
        "builds.sweep": 2 * tick_s,
        "presence.sweep": 5 * tick_s,
        "reports.sweep": 60 * tick_s,
        "retention.sweep": 60 * tick_s,
        "fleet.fold": 5 * tick_s,
    }
    return {
        name: {
            "task": name,
            "schedule": timedelta(seconds=period),
            "options": {"expires": EXPIRES_S},
        }
        for name, period in periods.items()
    }
