"""The tasks: each opens a scope, calls one use case, and decides nothing."""

import os
import socket

from celery import Celery

from control_plane.bootstrap import Application
from control_plane.jobs import ticks
from control_plane.jobs.app import EXPIRES_S
from control_plane.jobs.build import run_build
from control_plane.services import builds, inventory, presence, reports, retention, webhooks

ACTOR = "scheduler"


def register(celery: Celery, app: Application) -> None:
    """Define the tasks of one worker on one application's parts.

    Not shared: Celery would offer them to every other worker of the process as well.
    """

    @celery.task(name="build.run", shared=False)
    def run(build_id: str) -> None:
        run_build(app, build_id, f"{socket.gethostname()}:{os.getpid()}")

    @celery.task(name="builds.sweep", shared=False)
    def sweep_builds() -> None:
        with app.reading(ACTOR) as scope:
            due = builds.due(scope)
        for build_id in due:
            run.apply_async((build_id,), expires=EXPIRES_S)

    @celery.task(name="rollouts.tick", shared=False)
    def tick_rollouts() -> None:
        ticks.tick(lambda: app.reading(ACTOR), lambda: app.scope(ACTOR))

    _register_sweeps(celery, app)


def _register_sweeps(celery: Celery, app: Application) -> None:
    @celery.task(name="presence.sweep", shared=False)
    def sweep_presence() -> None:
        with app.scope(ACTOR) as scope:
            presence.sweep(scope)

    @celery.task(name="reports.sweep", shared=False)
    def sweep_reports() -> None:
        with app.scope(ACTOR) as scope:
            reports.forget(scope)

    @celery.task(name="retention.sweep", shared=False)
    def sweep_old() -> None:
        for table in retention.TABLES:
            with app.scope(ACTOR) as scope:
                retention.sweep(scope, table)
        with app.scope(ACTOR) as scope:
            webhooks.forget(scope)

    @celery.task(name="fleet.fold", shared=False)
    def fold_counts() -> None:
        with app.scope(ACTOR) as scope:
            inventory.fold_counts(scope)
