"""Workers that die: the row decides, another one does the work, and it counts once."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from control_plane.bootstrap import Application, utc_now
from control_plane.config import Settings
from control_plane.jobs import tasks, ticks
from control_plane.jobs.app import make_celery
from control_plane.jobs.worker import Worker
from control_plane.local.supervisor import environment
from control_plane.store import builds as store
from tests.support import services

pytestmark = pytest.mark.integration

WAIT_S = 60.0


def eventually(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)  # rows and files of other processes cannot be awaited


def queue_a_build(app: Application, build_id: str) -> None:
    row = store.BuildRow(
        id=build_id,
        model="m",
        version="1.0.0",
        blueprint="b",
        blueprint_digest="",
        recipe="",
        waiver="",
        state="QUEUED",
        progress={},
        error="",
        digest="",
        attempt=0,
        created_at=utc_now(),
        started_at=None,
        finished_at=None,
    )
    with app.scope("test") as scope:
        store.add(scope.tx, row)


def state_of(app: Application, build_id: str) -> str:
    with app.reading("test") as scope:
        row = store.find(scope.tx, build_id)
    assert row is not None
    return row.state


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@contextmanager
def process(kind: str, settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Run a job process; whatever happens, it is gone at the end."""
    argv = [sys.executable, "-m", "tests.support.job_process", kind]
    with (settings.data / f"{kind}.log").open("ab") as log:
        started = subprocess.Popen(argv, env=environment(settings), stdout=log, stderr=log)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@pytest.fixture
def embedded(sqlite_url: str, tmp_path: Path) -> Iterator[Application]:
    """An application as one process has it: SQLite and an in-process queue."""
    data = tmp_path / "data"
    data.mkdir()
    app = Application(Settings(data=data, database_url=sqlite_url, tick_s=0.1))
    yield app
    app.close()


@pytest.fixture
def real(postgres_url: str, redis_server: services.Redis, tmp_path: Path) -> Iterator[Application]:
    """An application on PostgreSQL and Redis."""
    data = tmp_path / "data"
    data.mkdir()
    # Messages of one test must not reach the next: another of Redis' databases.
    settings = Settings(
        data=data,
        database_url=postgres_url,
        queue_url=f"{redis_server.url}/{next(_DATABASES)}",
        tick_s=0.2,
    )
    app = Application(settings)
    yield app
    app.close()


_DATABASES = iter(range(1, 16))


def test_a_build_that_a_killed_embedded_worker_left_is_taken_up_at_the_next_start(
    embedded: Application,
) -> None:
    data = embedded.settings.data
    queue_a_build(embedded, "build-1")
    with process("worker", embedded.settings) as first:
        eventually(lambda: lines(data / "started") == ["1"], "the first attempt did not start")
        first.kill()
    (data / "go").touch()

    with process("worker", embedded.settings):
        eventually(lambda: state_of(embedded, "build-1") == "SUCCEEDED", "not taken up")

    assert lines(data / "started") == ["1", "2"]
    assert lines(data / "ended") == ["2"]


def test_a_build_on_redis_survives_its_killed_worker_and_ends_once(real: Application) -> None:
    data = real.settings.data
    queue_a_build(real, "build-1")
    with ExitStack() as running:
        running.enter_context(process("scheduler", real.settings))
        with process("worker", real.settings) as first:
            eventually(lambda: lines(data / "started") == ["1"], "the first attempt did not start")
            first.kill()
        (data / "go").touch()
        running.enter_context(process("worker", real.settings))
        running.enter_context(process("worker", real.settings))
        eventually(lambda: state_of(real, "build-1") == "SUCCEEDED", "not taken up")

    assert lines(data / "started") == ["1", "2"]
    assert lines(data / "ended") == ["2"]


def test_builds_go_on_when_redis_has_lost_everything(
    real: Application, redis_server: services.Redis
) -> None:
    (real.settings.data / "go").touch()
    with process("scheduler", real.settings), process("worker", real.settings):
        queue_a_build(real, "build-1")
        eventually(lambda: state_of(real, "build-1") == "SUCCEEDED", "the first build")

        redis_server.kill()
        for path in redis_server.folder.glob("appendonlydir/*"):
            path.unlink()
        redis_server.start()
        queue_a_build(real, "build-2")

        eventually(lambda: state_of(real, "build-2") == "SUCCEEDED", "the second build")


def test_a_consumer_goes_on_after_it_could_not_acknowledge_a_message(
    redis_server: services.Redis,
) -> None:
    celery = make_celery(Settings(queue_url=f"{redis_server.url}/{next(_DATABASES)}"))
    with celery.connection_for_read() as connection:
        queue = connection.SimpleQueue("q")
        qos = queue.consumer.channel.qos
        queue.consumer.qos(prefetch_count=1)
        queue.put("first")
        message = queue.get(timeout=WAIT_S)
        assert not qos.can_consume()

        redis_server.kill()
        with pytest.raises(connection.connection_errors):
            message.ack()
        redis_server.start()

        assert qos.can_consume()
        queue.close()


@pytest.mark.parametrize("kind", ["worker", "scheduler"])
def test_a_job_process_ends_when_asked(embedded: Application, kind: str) -> None:
    with process(kind, embedded.settings) as running:
        log = embedded.settings.data / f"{kind}.log"
        eventually(lambda: f"{kind}.started" in log.read_text(), "did not start")
        running.terminate()

        assert running.wait(10) == 0
    assert f"{kind}.stopped" in log.read_text()


def test_a_worker_does_not_wait_for_a_long_build_when_asked_to_end(embedded: Application) -> None:
    queue_a_build(embedded, "build-1")
    with process("worker", embedded.settings) as running:
        eventually(lambda: lines(embedded.settings.data / "started") == ["1"], "did not start")
        running.terminate()

        assert running.wait(10) == 0


def test_a_running_build_does_not_hold_up_the_ticks(
    embedded: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    building, done = threading.Event(), threading.Event()
    ticked = threading.Semaphore(0)

    def build(app: Application, build_id: str, _owner: str) -> None:
        building.set()
        done.wait(WAIT_S)

    def tick(*_scopes: object) -> None:
        if building.is_set():
            ticked.release()

    monkeypatch.setattr(tasks, "run_build", build)
    monkeypatch.setattr(ticks, "tick", tick)
    queue_a_build(embedded, "build-1")
    worker = Worker(embedded, with_scheduler=True)
    worker.start()
    try:
        assert all(ticked.acquire(timeout=WAIT_S) for _ in range(3))
        assert worker.alive
    finally:
        done.set()
        assert worker.stop()
