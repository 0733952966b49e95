"""A job process for tests, with a build that takes as long as a test wants.

Run as ``python -m tests.support.job_process worker|scheduler``. The build claims its real row,
notes its attempt in ``<data>/started``, and waits until ``<data>/go`` exists.
"""

import sys
import time
from datetime import timedelta

from control_plane.bootstrap import Application
from control_plane.jobs import tasks
from control_plane.jobs.scheduler import run_scheduler
from control_plane.jobs.worker import run_worker
from control_plane.observability import configure_logging
from control_plane.store import builds as store

LEASE_S = 1.0


def build(app: Application, build_id: str, owner: str) -> None:
    """Do what a real build does with its row, and nothing else."""
    with app.scope("test") as scope:
        until = scope.now + timedelta(seconds=LEASE_S)
        if not store.claim(scope.tx, build_id, owner, "", now=scope.now, until=until):
            return
        row = store.find(scope.tx, build_id)
    assert row is not None
    fence = store.Fence(build_id, owner, row.attempt)
    _note(app, "started", row.attempt)
    while not (app.settings.data / "go").exists():
        time.sleep(0.05)  # a file tells nobody that it is there
        with app.scope("test") as scope:
            until = scope.now + timedelta(seconds=LEASE_S)
            if not store.renew(scope.tx, fence, {}, until):
                return
    with app.scope("test") as scope:
        done = store.end(scope.tx, fence, "SUCCEEDED", scope.now)
    if done:
        _note(app, "ended", row.attempt)


def _note(app: Application, name: str, attempt: int) -> None:
    with (app.settings.data / name).open("a") as file:
        file.write(f"{attempt}\n")


def main() -> None:
    """Run one process on the settings in the environment."""
    configure_logging("INFO")
    vars(tasks)["run_build"] = build  # the one thing that is not real here
    application = Application()
    try:
        if sys.argv[1] == "worker":
            run_worker(application, with_scheduler=False)
        else:
            run_scheduler(application)
    finally:
        application.close()


if __name__ == "__main__":
    main()
