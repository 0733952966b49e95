import copy
from typing import Any

import pytest
from fastapi.testclient import TestClient

from control_plane.bootstrap import Application
from tests.integration.api.support import (
    ROLLOUT,
    add_fleet,
    add_version,
    api_token,
    client_of,
    enrol_with,
    set_state,
)

PATH = "/api/v1/rollouts/slm-1.1.0"


def changed(**spec: Any) -> dict[str, Any]:
    document = copy.deepcopy(ROLLOUT)
    document["spec"] |= spec
    return document


@pytest.fixture
def fleet(sqlite_app: Application, client: TestClient) -> TestClient:
    add_fleet(sqlite_app, client)
    return client


def test_a_rollout_is_planned_applied_started_and_steered(app: Application) -> None:
    with client_of(app, api_token(app)) as client:
        names = add_fleet(app, client)
        plan = client.post("/api/v1/rollouts:plan", json=ROLLOUT).json()
        assert sorted(one for wave in plan["waves"] for one in wave["devices"]) == names
        assert client.get(PATH).status_code == 404
        made = client.put(PATH, json=ROLLOUT)
        assert (made.status_code, made.json()["state"]) == (200, "DRAFT")
        started = client.post(f"{PATH}:start", json={"reason": "go"})
        assert started.json()["state"] == "BUILDING"
        assert [b["blueprint"] for b in client.get("/api/v1/builds").json()["items"]] == [
            "plain-cpu"
        ]
        aborted = client.post(f"{PATH}:abort", json={"mode": "keep", "reason": "no"})
        assert aborted.json()["state"] == "ABORTED"
        decisions = client.get(f"{PATH}/decisions").json()["items"]
        assert {"go", "no"} <= {decision["reason"] for decision in decisions}
        executions = client.get(f"{PATH}/executions").json()["items"]
        assert sorted(one["device"] for one in executions) == names
        explained = client.get(f"{PATH}/explain").json()
        assert explained["explanation"]["state"] == "ABORTED"
        assert explained["text"].startswith("slm-1.1.0: ABORTED")


def test_executions_come_in_pages(fleet: TestClient) -> None:
    fleet.put(PATH, json=ROLLOUT)
    first = fleet.get(f"{PATH}/executions", params={"limit": 2}).json()
    rest = fleet.get(f"{PATH}/executions", params={"limit": 2, "cursor": first["next"]}).json()
    devices = [one["device"] for one in first["items"] + rest["items"]]
    assert (len(first["items"]), rest["next"], sorted(devices)) == (
        2,
        "",
        ["edge-1", "edge-2", "edge-3"],
    )


def test_what_is_not_legal_now_is_a_conflict_that_says_what_is(fleet: TestClient) -> None:
    fleet.put(PATH, json=ROLLOUT)
    answer = fleet.post(f"{PATH}:resume", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal-transition")
    assert "DRAFT" in answer.json()["detail"]
    assert fleet.get(PATH).json()["state"] == "DRAFT"


def test_a_verb_for_an_old_revision_does_nothing(fleet: TestClient) -> None:
    old = fleet.put(PATH, json=ROLLOUT).headers["etag"]
    fleet.post(f"{PATH}:start", json={})
    answer = fleet.post(f"{PATH}:abort", json={}, headers={"If-Match": old})
    assert (answer.status_code, answer.json()["code"]) == (412, "precondition-failed")
    assert fleet.get(PATH).json()["state"] == "BUILDING"


def test_a_draft_is_replaced_and_a_started_one_is_not(fleet: TestClient) -> None:
    fleet.put(PATH, json=ROLLOUT)
    replaced = fleet.put(PATH, json=changed(soak="5s"))
    assert (replaced.status_code, replaced.json()["spec"]["soak"]) == (200, "5s")
    fleet.post(f"{PATH}:start", json={})
    answer = fleet.put(PATH, json=changed(soak="9s"))
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert fleet.get(PATH).json()["spec"]["soak"] == "5s"


@pytest.mark.parametrize(
    ("spec", "status", "field"),
    [
        ({"version": "9.9.9"}, 404, "spec.version"),
        ({"selector": 'labels.site = "nowhere"'}, 422, "spec.selector"),
        ({"selector": "labels.site = "}, 422, "spec.selector"),
        ({"colour": "red"}, 422, "spec.colour"),
        ({"waves": []}, 422, "spec.waves"),
        ({"waves": [{"name": "all", "percent": 0}]}, 422, "spec.waves[0].percent"),
        ({"waves": [{"name": "all"}]}, 422, "spec.waves[0]"),
        ({"soak": "soon"}, 422, "spec.soak"),
        ({"gates": {"max_failures": -1}}, 422, "spec.gates.max_failures"),
    ],
)
def test_a_wrong_rollout_is_named_and_changes_nothing(
    fleet: TestClient, spec: dict[str, Any], status: int, field: str
) -> None:
    for answer in (
        fleet.put(PATH, json=changed(**spec)),
        fleet.post("/api/v1/rollouts:plan", json=changed(**spec)),
    ):
        assert (answer.status_code, answer.json()["field"]) == (status, field)
    assert fleet.get("/api/v1/rollouts").json()["items"] == []


@pytest.mark.parametrize(
    "path", ["", "/executions", "/decisions", "/explain", ":start", ":pause", ":abort", ":revert"]
)
def test_an_unknown_rollout_is_not_found(client: TestClient, path: str) -> None:
    address = f"/api/v1/rollouts/none{path}"
    answer = client.post(address, json={}) if path.startswith(":") else client.get(address)
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


def test_a_mode_that_is_none_is_refused(fleet: TestClient) -> None:
    fleet.put(PATH, json=ROLLOUT)
    answer = fleet.post(f"{PATH}:abort", json={"mode": "sometimes"})
    assert (answer.status_code, answer.json()["field"]) == (422, "mode")


def test_rollouts_are_listed_by_filter(sqlite_app: Application, fleet: TestClient) -> None:
    fleet.put(PATH, json=ROLLOUT)
    other = changed()
    other["metadata"]["name"] = "second"
    fleet.put("/api/v1/rollouts/second", json=other)
    set_state(sqlite_app, "second", "HALTED")
    listed = fleet.get("/api/v1/rollouts", params={"filter": 'state = "HALTED"'}).json()
    assert [one["name"] for one in listed["items"]] == ["second"]


def test_a_repeated_start_with_its_key_is_one_start(fleet: TestClient) -> None:
    fleet.put(PATH, json=ROLLOUT)
    headers = {"Idempotency-Key": "start-once"}
    first = fleet.post(f"{PATH}:start", json={}, headers=headers)
    again = fleet.post(f"{PATH}:start", json={}, headers=headers)
    assert (first.status_code, again.status_code, again.content) == (200, 200, first.content)


def test_benchmarks_of_an_empty_rollout_are_an_empty_page(fleet: TestClient) -> None:
    fleet.put(PATH, json=ROLLOUT)
    found = fleet.get("/api/v1/benchmarks", params={"rollout": "slm-1.1.0"}).json()
    assert found == {"items": [], "next": ""}


def test_a_device_without_a_blueprint_is_a_misfit_with_a_reason(
    sqlite_app: Application, client: TestClient
) -> None:
    add_version(sqlite_app)
    enrol_with(client, "edge-1")
    answer = client.post("/api/v1/rollouts:plan", json=ROLLOUT)
    assert (answer.status_code, answer.json()["field"]) == (422, "spec.selector")
    assert "edge-1" in answer.json()["detail"]
