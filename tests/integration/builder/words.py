"""What tests of builds say in a word."""

from sqlalchemy import select

from agent.protocol import manifest as wire
from agent.protocol.envelope import MANIFEST_TYPE, open_unverified
from control_plane.bootstrap import Application
from control_plane.jobs.build import run_build
from control_plane.services import builds
from control_plane.services.builds import ArtifactView, BuildView, BundleRow
from control_plane.store.schema import bundle


def request(app: Application, blueprint: str = "edge", **how: str) -> str:
    with app.scope("ana") as scope:
        return builds.request(scope, "tiny", "1.0.0", blueprint, **how).id


def build(app: Application, blueprint: str = "edge", **how: str) -> BuildView:
    """Ask for a build and work on it."""
    build_id = request(app, blueprint, **how)
    run_build(app, build_id, "worker-1")
    with app.reading("ana") as scope:
        return builds.get_build(scope, build_id)


def artifacts(app: Application, **wanted: str) -> list[ArtifactView]:
    with app.reading("ana") as scope:
        return builds.list_artifacts(scope, **wanted).items  # type: ignore[arg-type] # test data


def bundle_for(app: Application, blueprint: str = "edge") -> BundleRow | None:
    with app.reading("ana") as scope:
        return builds.bundle_for(scope, "tiny", "1.0.0", blueprint)


def manifest_of(app: Application, digest: str) -> wire.Manifest:
    with app.reading("ana") as scope:
        envelope = scope.tx.execute(
            select(bundle.c.envelope).where(bundle.c.digest == digest)
        ).scalar_one()
    payload, _ = open_unverified(envelope, MANIFEST_TYPE)
    assert wire.digest(payload) == digest
    return wire.decode(payload)
