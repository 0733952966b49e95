import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from agent.protocol.manifest import GoldenSet
from control_plane.bootstrap import Application
from control_plane.domain.blueprint import Blueprint, Limits
from control_plane.jobs import build as jobs
from control_plane.jobs.build import run_build
from control_plane.services import audit, builds
from control_plane.store.schema import bundle, bundle_file
from tests.integration.builder.conftest import Push, edge
from tests.integration.builder.words import artifacts, build, bundle_for, manifest_of

pytestmark = pytest.mark.integration

Apply = Callable[[Blueprint], None]


@pytest.fixture
def app(sqlite_app: Application) -> Application:
    """One kind of database is enough here: what the child does knows none."""
    return sqlite_app


def test_every_file_of_a_bundle_is_stored_under_its_digest(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge())
    manifest = manifest_of(app, build(app).digest)
    for file in manifest.files:
        assert app.blobs.size(file.sha256) == file.size
    with app.reading("ana") as scope:
        rows = scope.tx.execute(select(bundle_file.c.path, bundle_file.c.sha256)).all()
    assert sorted(map(tuple, rows)) == [(file.path, file.sha256) for file in manifest.files]
    golden = next(file for file in manifest.files if file.path == manifest.golden.file)
    read = json.loads(app.blobs.read(golden.sha256))
    assert GoldenSet(**read).v == 1
    assert len(read["prompts"]) == 4


def test_a_second_blueprint_takes_what_the_first_one_built(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge())
    apply(edge("other"))
    first = build(app)
    # A child could not even start in this: nothing is left for one to do.
    app.settings = app.settings.model_copy(update={"build_memory_limit_mb": 1})
    second = build(app, "other")
    assert (first.state, second.state) == ("SUCCEEDED", "SUCCEEDED")
    ours, theirs = manifest_of(app, first.digest), manifest_of(app, second.digest)
    assert ours.files == theirs.files
    assert len(artifacts(app, blueprint="other")) == 1


def test_building_again_from_nothing_gives_the_same_bundle(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge())
    first = build(app)
    with app.scope("ana") as scope:
        scope.tx.exec_driver_sql("DELETE FROM build_result")
    apply(edge(limits=Limits(disk_mb=2.0)))  # the disk's size is not in the manifest
    second = build(app)
    assert first.id != second.id
    assert first.digest == second.digest
    with app.reading("ana") as scope:
        assert scope.tx.execute(select(func.count()).select_from(bundle)).scalar() == 1


def test_a_build_that_finds_no_recipe_fails_with_the_binding_constraint(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge(limits=Limits(disk_mb=0.03), recipes=("int4-block32", "fp32")))
    done = build(app)
    assert done.state == "FAILED"
    assert "no recipe is good enough" in done.error
    assert "fp32: disk_mb 0.1" in done.error
    assert [one.accepted for one in artifacts(app)] == [False, False]
    assert bundle_for(app) is None


def test_a_recipe_asked_for_by_name_must_pass_the_floors_too(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge())
    done = build(app, recipe="int4-block64")
    assert done.state == "FAILED"
    assert [(one.recipe, one.accepted) for one in artifacts(app)] == [("int4-block64", False)]


def test_a_waiver_lets_a_recipe_through_in_the_open_and_the_device_still_checks(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge())
    done = build(app, recipe="static-qdq-full", waiver="to see the device refuse it")
    assert done.state == "SUCCEEDED"
    (tried,) = artifacts(app)
    assert tried.accepted
    assert "waived by ana: to see the device refuse it" in tried.why
    assert "kl_mean" in tried.why
    manifest = manifest_of(app, done.digest)
    assert manifest.golden.min_agreement == 0.8
    assert manifest.quality["golden_agreement"] < 0.8
    with app.reading("ana") as scope:
        entries = audit.list_audit(scope).items
    waived = next(entry for entry in entries if entry.action == "build.waive")
    assert (waived.actor, waived.reason) == ("ana", "to see the device refuse it")


def test_missing_builds_are_asked_for_once_and_a_failure_is_not_repeated(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge())
    apply(edge("hopeless", limits=Limits(disk_mb=0.001)))
    for state in ("QUEUED", "FAILED"):
        with app.scope("ana") as scope:
            views = builds.request_missing(scope, "tiny", "1.0.0", ["edge", "hopeless"])
            assert views[1].state == state
            assert len(builds.list_builds(scope).items) == 2
        run_build(app, views[1].id, "worker-1")


def test_a_changed_blueprint_needs_a_new_build_unless_only_words_changed(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge())
    build(app)
    apply(replace(edge(), notes="the same, explained"))
    assert bundle_for(app) is not None
    apply(edge(recipes=("fp32",)))
    assert bundle_for(app) is None
    build(app)
    found = bundle_for(app)
    assert found is not None
    assert found.recipe == "fp32"


def test_a_build_over_its_time_limit_fails_with_the_reason_and_leaves_no_folder(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge())
    app.settings = app.settings.model_copy(update={"build_time_limit_s": 1})
    done = build(app)
    assert done.state == "FAILED"
    assert "build_time_limit_s" in done.error
    assert list((app.settings.data / "builds").iterdir()) == []


def test_a_build_short_of_memory_fails_with_the_reason(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge())
    app.settings = app.settings.model_copy(update={"build_memory_limit_mb": 64})
    done = build(app)
    assert done.state == "FAILED"
    assert "the build process" in done.error


def test_a_source_whose_bytes_are_gone_fails_the_build_with_the_reason(
    app: Application, push: Push, apply: Apply
) -> None:
    version = push()
    apply(edge())
    graph = next(file for file in version.files if file.path == "model.onnx")
    blobs = app.settings.data.resolve() / "blobs"
    (blobs / graph.sha256[:2] / graph.sha256).unlink()
    done = build(app)
    assert done.state == "FAILED"
    assert graph.sha256 in done.error


def test_progress_says_which_recipe_of_how_many_is_tried(
    app: Application, push: Push, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    push()
    apply(edge(recipes=("int4-block32", "int8-dynamic", "fp32")))
    monkeypatch.setattr(jobs, "NEWS_S", 0.0)
    done = build(app)
    assert done.progress == {"step": "recipe", "recipe": "int8-dynamic", "index": 2, "of": 3}
