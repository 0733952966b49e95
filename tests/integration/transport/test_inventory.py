"""The inventory: pages, filters, labels, history, and the fleet in numbers."""

from dataclasses import replace
from datetime import timedelta

import pytest

from agent.protocol.messages import Heartbeat
from control_plane.bootstrap import Application
from control_plane.domain.device import DeviceId
from control_plane.domain.errors import InvalidError, NotFoundError
from control_plane.services import audit, inventory, reports
from tests.integration.transport.fleets import bundle, enrol, enrol_many, offer, up


def _ids(app: Application, text: str) -> list[str]:
    with app.reading("test") as scope:
        return [device.id for device in inventory.list_devices(scope, filter=text).items]


def test_pages_hold_every_device_once_in_order(app: Application) -> None:
    names = enrol_many(app, 7)
    found: list[DeviceId] = []
    cursor, pages = "", 0
    with app.reading("test") as scope:
        while True:
            page = inventory.list_devices(scope, limit=3, cursor=cursor)
            found += [device.id for device in page.items]
            pages += 1
            if not page.next:
                break
            cursor = page.next
    assert (found, pages) == (names, 3)


def test_a_device_that_enrols_while_somebody_pages_shifts_nothing(app: Application) -> None:
    enrol_many(app, 4)
    with app.reading("test") as scope:
        first = inventory.list_devices(scope, limit=2)
    enrol(app, "aaa-first")
    with app.reading("test") as scope:
        second = inventory.list_devices(scope, limit=2, cursor=first.next)
    assert [device.id for device in second.items] == ["edge-002", "edge-003"]


def test_filters_see_labels_hardware_and_versions(app: Application) -> None:
    enrol(app, "edge-1", {"site": "vie"})
    enrol(app, "edge-2", {"site": "fra"})
    stored = bundle(app)
    with app.scope("gateway") as scope:
        beat = Heartbeat(boot=1, generation=0, digest=stored.digest)
        reports.apply_batch(scope, [up("edge-2", "heartbeat", beat)])
    assert _ids(app, 'labels.site = "vie"') == ["edge-1"]
    assert _ids(app, 'version = "1.0.0" and online = true') == ["edge-2"]
    assert _ids(app, 'hardware.memory_mb >= 4096 and id : "edge-*"') == ["edge-1", "edge-2"]
    assert _ids(app, 'not version = "1.0.0"') == ["edge-1"]


def test_a_wrong_filter_names_its_column(app: Application) -> None:
    with app.reading("test") as scope, pytest.raises(InvalidError, match="column") as refusal:
        inventory.list_devices(scope, filter="colour = 3")
    assert refusal.value.field == "filter"


def test_a_view_joins_what_runs_what_is_wanted_and_how_far_it_is(app: Application) -> None:
    enrol(app, "edge-1", {"site": "vie"})
    stored = bundle(app)
    execution = offer(app, [DeviceId("edge-1")], stored)[DeviceId("edge-1")]
    with app.scope("gateway") as scope:
        beat = Heartbeat(boot=1, generation=0, digest=stored.digest)
        reports.apply_batch(scope, [up("edge-1", "heartbeat", beat)])
        device = inventory.get_device(scope, "edge-1")
    assert (device.model, device.version, device.recipe) == ("support-slm", "1.0.0", "int8")
    assert (device.generation, device.desired_generation) == (0, 1)
    assert (device.execution, device.execution_state) == (execution, "OFFERED")
    assert device.labels == {"site": "vie"}


def test_labels_are_set_changed_and_removed_and_the_act_is_noted(app: Application) -> None:
    enrol(app, "edge-1", {"site": "vie", "rack": "4"})
    with app.scope("ann") as scope:
        changes = {"site": "fra", "rack": None, "owner": "ops"}
        device = inventory.label_device(scope, "edge-1", changes, reason="moved")
        assert device.labels == {"site": "fra", "owner": "ops"}
        act = audit.list_audit(scope, filter='action = "device.label"').items[0]
    assert (act.actor, act.reason) == ("ann", "moved")
    assert (act.before, act.after) == (
        {"site": "vie", "rack": "4"},
        {"site": "fra", "owner": "ops"},
    )


def test_a_bad_label_changes_nothing(app: Application) -> None:
    enrol(app, "edge-1", {"site": "vie"})
    with pytest.raises(InvalidError) as refusal, app.scope("ann") as scope:
        inventory.label_device(scope, "edge-1", {"site": "fra", "bad key": "x"})
    assert refusal.value.field == "labels.bad key"
    with app.reading("test") as scope:
        assert inventory.get_device(scope, "edge-1").labels == {"site": "vie"}


def test_a_device_that_is_not_there_is_named(app: Application) -> None:
    with app.reading("test") as scope:
        with pytest.raises(NotFoundError, match="edge-404"):
            inventory.get_device(scope, "edge-404")
        with pytest.raises(NotFoundError, match="edge-404"):
            inventory.device_history(scope, "edge-404")
        with pytest.raises(NotFoundError, match="edge-404"):
            inventory.quarantine(scope, "edge-404", reason="x")


def test_history_comes_newest_first_page_by_page(app: Application) -> None:
    enrol(app, "edge-1")
    for reason in ("one", "two"):
        with app.scope("ann") as scope:
            inventory.quarantine(scope, "edge-1", reason=reason)
            inventory.unquarantine(scope, "edge-1")
    with app.reading("test") as scope:
        first = inventory.device_history(scope, "edge-1", limit=3)
        rest = inventory.device_history(scope, "edge-1", limit=3, cursor=first.next)
        with pytest.raises(InvalidError):
            inventory.device_history(scope, "edge-1", cursor="x")
    kinds = [entry.kind for entry in [*first.items, *rest.items]]
    assert kinds == ["state", "quarantined", "state", "quarantined", "enrolled"]
    assert rest.next == ""


def test_quarantining_twice_is_noted_once(app: Application) -> None:
    enrol(app, "edge-1")
    with app.scope("ann") as scope:
        inventory.quarantine(scope, "edge-1", reason="lost")
        inventory.quarantine(scope, "edge-1", reason="lost")
        assert len(inventory.device_history(scope, "edge-1").items) == 2


def test_the_fleet_in_numbers(app: Application) -> None:
    enrol_many(app, 5)
    stored = bundle(app)
    with app.scope("gateway") as scope:
        said = [
            up(
                f"edge-00{n}",
                "heartbeat",
                Heartbeat(boot=1, generation=0, digest=stored.digest, healthy=n > 0),
            )
            for n in range(3)
        ]
        reports.apply_batch(scope, said)
        inventory.quarantine(scope, "edge-004", reason="stolen")
        summary = inventory.fleet_summary(scope)
    assert (summary.total, summary.online, summary.healthy) == (5, 3, 2)
    assert summary.by_version == {"support-slm 1.0.0": 3, "": 2}
    assert summary.by_state == {"active": 4, "quarantined": 1}
    assert summary.by_blueprint == {"": 5}


def test_an_empty_fleet_has_numbers_too(app: Application) -> None:
    with app.reading("test") as scope:
        summary = inventory.fleet_summary(scope)
    assert (summary.total, summary.online, summary.by_version) == (0, 0, {})


def test_who_was_seen_lately_depends_on_now(app: Application) -> None:
    enrol(app, "edge-1")
    with app.scope("gateway") as scope:
        reports.apply_batch(scope, [up("edge-1", "heartbeat", Heartbeat(boot=1, generation=0))])
        assert inventory.list_devices(scope, filter='last_seen > ago("1h")').items
        late = replace(scope, now=scope.now + timedelta(hours=2))
        assert not inventory.list_devices(late, filter='last_seen > ago("1h")').items
