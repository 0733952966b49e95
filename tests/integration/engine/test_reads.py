"""Reading rollouts: pages with cursors, filters, and what a change of plan leaves."""

from typing import Any

import pytest
from sqlalchemy import update

from agent.protocol.words import ExecutionState
from control_plane.domain.errors import ConflictError, InvalidError
from control_plane.services import rollout_document
from control_plane.services import rollouts as service
from control_plane.store import schema
from tests.integration.engine.conftest import Fleet

E = ExecutionState


def _document(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "flotilla/v1",
        "kind": "Rollout",
        "metadata": {"name": name},
        "spec": {
            "model": "slm",
            "version": "1.1.0",
            "waves": [{"name": "all", "percent": 100}],
            **spec,
        },
    }


def test_executions_come_in_pages_in_the_order_of_the_plan(fleet: Fleet) -> None:
    name = fleet.create("1.1.0")
    seen: list[str] = []
    cursor = ""
    with fleet.scope() as scope:
        while True:
            page = service.executions(scope, name, limit=5, cursor=cursor)
            seen += [part.device for part in page.items]
            cursor = page.next
            if not cursor:
                break
    assert seen == list(fleet.parts(name))
    assert len(seen) == 12


def test_executions_can_be_filtered(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    with fleet.scope() as scope:
        found = service.executions(
            scope, name, filter='state = "OFFERED" and blueprint : "x86-*" and wave = 0'
        )
        assert len(found.items) == 2
        with pytest.raises(InvalidError, match="column 1: color is no field"):
            service.executions(scope, name, filter="color = 1")


def test_rollouts_come_newest_first_in_pages(fleet: Fleet) -> None:
    with fleet.scope() as scope:
        for i in range(3):
            service.create(scope, rollout_document.parse(_document(f"r{i}")))
        first = service.list_rollouts(scope, limit=2)
        second = service.list_rollouts(scope, limit=2, cursor=first.next)
        assert [view.name for view in first.items + second.items] == ["r2", "r1", "r0"]
        assert second.next == ""
        assert service.list_rollouts(scope, filter='name = "r1" and state = "DRAFT"').items
        with pytest.raises(InvalidError, match="not a cursor"):
            service.list_rollouts(scope, cursor="yesterday")


def test_decisions_and_trials_come_newest_first_in_pages(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    for device in fleet.in_state(name, E.OFFERED):
        fleet.trial(name, device)
    with fleet.scope() as scope:
        kinds: list[str] = []
        cursor = ""
        while not kinds or cursor:
            page = service.decisions(scope, name, limit=2, cursor=cursor)
            kinds += [one.kind for one in page.items]
            cursor = page.next
        assert kinds[::-1] == ["start", "request_builds", "open_wave", "offer", "hold"]
        first = service.benchmarks(scope, rollout=name, limit=2)
        second = service.benchmarks(scope, rollout=name, limit=2, cursor=first.next)
        assert len(first.items + second.items) == 3
        trial = first.items[0]
        assert (trial.candidate, trial.incumbent, trial.verdict) == ("1.1.0", "1.0.0", "pass")
        assert len(service.benchmarks(scope, device=trial.device).items) == 1


def test_a_draft_can_be_replaced_and_is_planned_again(fleet: Fleet) -> None:
    with fleet.scope() as scope:
        made = service.create(scope, rollout_document.parse(_document("r")))
        same = service.replace(scope, "r", rollout_document.parse(_document("r")))
        assert same == made
        narrow = _document("r", selector='blueprint = "arm64-board"')
        changed = service.replace(scope, "r", rollout_document.parse(narrow), revision=1)
        assert (changed.waves[0].total, changed.revision) == (4, 2)
        with pytest.raises(ConflictError, match="revision 2, not 1"):
            service.replace(scope, "r", rollout_document.parse(_document("r")), revision=1)
        service.start(scope, "r")
        assert service.replace(scope, "r", rollout_document.parse(narrow)).name == "r"
        with pytest.raises(ConflictError, match="only a DRAFT can change"):
            service.replace(scope, "r", rollout_document.parse(_document("r")))


def test_a_device_quarantined_since_the_plan_is_not_offered_it(fleet: Fleet) -> None:
    name = fleet.create("1.1.0", waves=[{"name": "all", "percent": 100}])
    away = next(iter(fleet.parts(name)))
    with fleet.scope() as scope:
        mine = update(schema.device).where(schema.device.c.id == away)
        scope.tx.execute(mine.values(state="quarantined"))
        service.start(scope, name)
    fleet.tick()
    part = fleet.parts(name)[away]
    assert (part.state, part.reason) == ("CANCELED", "quarantined")
    assert len(fleet.in_state(name, E.OFFERED)) == 11


def test_a_person_who_steers_is_in_the_decisions_and_the_audit_trail(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    fleet.do("pause", name, reason="the site is closed")
    newest = [one for one in fleet.decisions(name) if one.kind == "pause"]
    assert [(one.actor, one.reason) for one in newest] == [("tester", "the site is closed")]
    with fleet.scope() as scope:
        from_audit = scope.tx.execute(
            schema.audit.select().where(schema.audit.c.action == "rollout.pause")
        ).one()
    assert (from_audit.reason, from_audit.before) == ("the site is closed", {"state": "RUNNING"})
