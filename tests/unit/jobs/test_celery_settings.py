import pytest

from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.jobs import tasks
from control_plane.jobs.app import BUILDS, make_celery


def test_a_message_is_acknowledged_only_after_its_task_has_ended() -> None:
    conf = make_celery(Settings()).conf

    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1


def test_redis_hands_a_message_out_again_only_after_the_longest_build() -> None:
    settings = Settings(queue_url="redis://127.0.0.1:6379/0", build_time_limit_s=1234)

    options = make_celery(settings).conf.broker_transport_options

    assert options["visibility_timeout"] > 1234
    assert options["unacked_restore_interval"] * options["unacked_restore_throttle"] == 1


def test_everything_that_the_scheduler_sends_is_a_task_that_expires(
    sqlite_app: Application,
) -> None:
    celery = make_celery(sqlite_app.settings)
    tasks.register(celery, sqlite_app)

    scheduled = {entry["task"]: entry for entry in celery.conf.beat_schedule.values()}

    swept = {f"{name}.sweep" for name in ("builds", "presence", "reports", "retention")}
    assert set(scheduled) == {"rollouts.tick", "fleet.fold", *swept}
    assert set(scheduled) <= set(celery.tasks)
    assert all(entry["options"]["expires"] > 0 for entry in scheduled.values())


@pytest.mark.parametrize("name", ["build.run"])
def test_builds_have_a_queue_of_their_own(name: str) -> None:
    celery = make_celery(Settings())

    route = celery.amqp.router.route({}, name)

    assert route["queue"].name == BUILDS


def test_no_results_and_no_events_are_kept() -> None:
    conf = make_celery(Settings()).conf

    assert conf.task_ignore_result
    assert not conf.worker_send_task_events
    assert not conf.result_backend
