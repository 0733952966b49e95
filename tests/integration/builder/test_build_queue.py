from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from control_plane.bootstrap import Application
from control_plane.builder.errors import LeaseLostError
from control_plane.domain.blueprint import Blueprint
from control_plane.domain.errors import InvalidError, NotFoundError
from control_plane.services import builds
from control_plane.services.scope import Scope
from tests.integration.builder.conftest import Push, edge
from tests.integration.builder.words import artifacts, build, bundle_for, manifest_of, request

pytestmark = pytest.mark.integration

Apply = Callable[[Blueprint], None]


def later(scope: Scope, seconds: float) -> Scope:
    return replace(scope, now=scope.now + timedelta(seconds=seconds))


def test_the_best_recipe_that_is_good_enough_becomes_a_bundle(
    app: Application, push: Push, apply: Apply
) -> None:
    version = push()
    apply(edge(recipes=("int4-block32", "int8-dynamic", "fp32")))
    done = build(app)
    assert (done.state, done.error, done.attempt) == ("SUCCEEDED", "", 1)
    tried = artifacts(app)
    assert [(one.recipe, one.accepted) for one in tried] == [
        ("int4-block32", False),
        ("int8-dynamic", True),
    ]
    assert "wanted" in tried[0].why
    assert tried[0].digest == ""
    assert tried[1].digest == done.digest
    assert tried[1].bytes < 0.4 * tried[1].source_bytes
    found = bundle_for(app)
    assert found is not None
    assert (found.digest, found.recipe, found.release) == (done.digest, "int8-dynamic", 1)
    manifest = manifest_of(app, done.digest)
    assert manifest.source.digest == version.source_digest
    assert found.size == sum(file.size for file in manifest.files)


def test_a_waiver_without_a_recipe_or_an_unknown_recipe_is_refused(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge())
    for how in ({"waiver": "because"}, {"recipe": "int3"}):
        with pytest.raises(InvalidError) as refused:
            request(app, **how)
        assert refused.value.field == "recipe"


def test_a_build_of_what_does_not_exist_is_refused(
    app: Application, push: Push, apply: Apply
) -> None:
    apply(edge())
    with pytest.raises(NotFoundError, match="model 'tiny'"):
        request(app)
    push()
    with pytest.raises(NotFoundError, match="blueprint 'nope'"):
        request(app, "nope")


def test_asking_twice_gives_one_build(app: Application, push: Push, apply: Apply) -> None:
    push()
    apply(edge())
    assert request(app) == request(app)
    assert request(app) != request(app, recipe="fp32")


def test_one_worker_at_a_time_has_a_build(app: Application, push: Push, apply: Apply) -> None:
    push()
    apply(edge())
    build_id = request(app)
    with app.scope("worker") as scope:
        assert builds.due(scope) == [build_id]
        assert builds.claim(scope, build_id, "one", 60) is not None
        assert builds.claim(scope, build_id, "two", 60) is None
        assert builds.due(scope) == []
        assert builds.claim(scope, "nothing", "one", 60) is None


def test_a_worker_that_lost_its_lease_can_write_nothing(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge())
    build_id = request(app)
    with app.scope("worker") as scope:
        first = builds.claim(scope, build_id, "one", 60)
    assert first is not None
    with app.scope("worker") as scope:
        assert builds.due(later(scope, 61)) == [build_id]
        second = builds.claim(later(scope, 61), build_id, "one", 60)
    assert second is not None
    with pytest.raises(LeaseLostError), app.scope("worker") as scope:
        builds.fail(scope, first, "too late")
    with pytest.raises(LeaseLostError), app.scope("worker") as scope:
        builds.progress(scope, first, {"step": "late"}, 60)
    with app.scope("worker") as scope:
        builds.progress(scope, second, {"step": "recipe"}, 60)
    with app.reading("ana") as scope:
        view = builds.get_build(scope, build_id)
    assert (view.state, view.attempt, view.progress) == ("RUNNING", 2, {"step": "recipe"})


def test_a_build_that_kills_its_workers_is_given_up(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge())
    build_id = request(app)
    for attempt in range(3):
        with app.scope("worker") as scope:
            assert builds.claim(later(scope, attempt * 100), build_id, "one", 60) is not None
    with app.scope("worker") as scope:
        assert builds.claim(later(scope, 400), build_id, "one", 60) is None
    with app.reading("ana") as scope:
        view = builds.get_build(scope, build_id)
    assert view.state == "FAILED"
    assert "3 workers died" in view.error


def test_listings_page_from_the_newest_and_refuse_a_foreign_cursor(
    app: Application, push: Push, apply: Apply
) -> None:
    push()
    apply(edge())
    wanted = [request(app, recipe=name) for name in ("fp32", "fp16", "int4-mixed")]
    with app.reading("ana") as scope:
        first = builds.list_builds(scope, limit=2)
        second = builds.list_builds(scope, limit=2, cursor=first.next)
        assert [view.id for view in (*first.items, *second.items)] == wanted[::-1]
        assert second.next == ""
        assert builds.list_builds(scope, state="RUNNING").items == []
        with pytest.raises(InvalidError) as refused:
            builds.list_builds(scope, cursor="42")
    assert refused.value.field == "cursor"
