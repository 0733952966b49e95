"""Every verb in every state over HTTP, and the verbs beside those of the machine."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from control_plane.api.errors import status_of
from control_plane.bootstrap import Application
from control_plane.domain import rollout_verbs
from control_plane.domain.errors import GoneError
from control_plane.domain.rollout import RolloutState
from control_plane.domain.rollout_view import Machine
from control_plane.services import rollout_codec
from control_plane.store import schema
from tests.integration.api.support import ROLLOUT, add_fleet, api_token, client_of

NAME = "slm-1.1.0"
PATH = f"/api/v1/rollouts/{NAME}"
VERSION = "/api/v1/models/slm/versions/1.1.0"
BEFORE_ANY_WAVE = {"DRAFT", "BUILDING", "SCHEDULED", "AWAITING_APPROVAL"}


@pytest.fixture
def fleet(sqlite_app: Application, client: TestClient) -> TestClient:
    """Three devices and a draft by ada."""
    add_fleet(sqlite_app, client)
    assert client.put(PATH, json=ROLLOUT).status_code == 200
    return client


@pytest.fixture
def bob(sqlite_app: Application, fleet: TestClient) -> TestClient:
    """Somebody who did not write it."""
    return client_of(sqlite_app, api_token(sqlite_app, "bob"))


def put_into(app: Application, state: RolloutState) -> None:
    machine = Machine(state=state)
    if state not in BEFORE_ANY_WAVE:
        machine = Machine(state=state, wave=0, opened_at=(0.0,), due_at=(None,))
    rollout = schema.rollout
    values: dict[str, Any] = {"state": state.value, "machine": rollout_codec.plain(machine)}
    with app.database.transaction() as tx:
        tx.execute(update(rollout).where(rollout.c.name == NAME).values(**values))


@pytest.mark.parametrize("state", list(RolloutState))
def test_what_is_not_legal_in_a_state_is_a_conflict_that_says_what_is(
    sqlite_app: Application, bob: TestClient, state: RolloutState
) -> None:
    allowed = rollout_verbs.legal(state)
    for verb in rollout_verbs.NAMES:
        put_into(sqlite_app, state)
        answer = bob.post(f"{PATH}:{verb}", json={"reason": "to see"})
        said = answer.json()
        if verb in allowed:
            assert said.get("code") != "illegal-transition", (verb, said)
            assert answer.status_code == 200 or verb == "retry", (verb, said)
            continue
        assert (answer.status_code, said["code"]) == (409, "illegal-transition"), verb
        assert state.value in said["detail"]
        assert all(name in said["detail"] for name in allowed if name != "retry"), said
        assert bob.get(PATH).json()["state"] == state.value


def test_a_denial_needs_a_reason_and_shows_it(sqlite_app: Application, bob: TestClient) -> None:
    put_into(sqlite_app, RolloutState.AWAITING_APPROVAL)
    answer = bob.post(f"{PATH}:deny", json={})
    assert (answer.status_code, answer.json()["field"]) == (422, "reason")
    denied = bob.post(f"{PATH}:deny", json={"reason": "not in December"}).json()
    assert (denied["state"], denied["state_reason"]) == (
        "ABORTED",
        "denied by bob: not in December",
    )
    entry = bob.get("/api/v1/audit").json()["items"][0]
    assert (entry["action"], entry["reason"]) == ("rollout.deny", "not in December")


def test_a_retry_is_made_once_for_its_key_and_only_of_the_revision_that_was_seen(
    sqlite_app: Application, fleet: TestClient
) -> None:
    put_into(sqlite_app, RolloutState.ABORTED)
    execution = schema.execution
    failed = update(execution).where(execution.c.device_id == "edge-2").values(state="FAILED")
    with sqlite_app.database.transaction() as tx:
        tx.execute(failed)
    stale = fleet.post(f"{PATH}:retry", json={}, headers={"If-Match": '"9"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "precondition-failed")
    headers = {"Idempotency-Key": "once"}
    made, again = (fleet.post(f"{PATH}:retry", json={}, headers=headers) for _ in range(2))
    assert (made.status_code, again.content) == (200, made.content)
    assert (made.json()["name"], made.json()["retries"]) == (f"{NAME}-retry-1", NAME)
    parts = fleet.get(f"/api/v1/rollouts/{NAME}-retry-1/executions").json()["items"]
    assert [part["device"] for part in parts] == ["edge-2"]
    listed = fleet.get("/api/v1/rollouts", params={"filter": f'retries = "{NAME}"'}).json()
    assert [one["name"] for one in listed["items"]] == [f"{NAME}-retry-1"]
    unknown = fleet.post(f"{PATH}:retry", json={"all": True})
    assert (unknown.status_code, unknown.json()["field"]) == (422, "all")


def test_an_invalid_version_is_refused_everywhere_and_shown(fleet: TestClient) -> None:
    assert fleet.post(f"{VERSION}:invalidate", json={}).json()["field"] == "reason"
    body = {"reason": "it leaks", "devices": "revert"}
    headers = {"Idempotency-Key": "once"}
    done = fleet.post(f"{VERSION}:invalidate", json=body, headers=headers)
    assert (done.status_code, done.json()["rollouts"]) == (
        200,
        [{"name": NAME, "state": "ABORTED"}],
    )
    replayed = fleet.post(f"{VERSION}:invalidate", json=body, headers=headers)
    assert replayed.headers["idempotency-replayed"] == "true"
    for answer in (
        fleet.post(f"{PATH}:start", json={}),
        fleet.post("/api/v1/rollouts:plan", json=ROLLOUT),
        fleet.put(PATH, json=ROLLOUT),
        fleet.post("/api/v1/builds", json={"model": "slm", "version": "1.1.0"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "version-invalid")
        assert "invalidated by ada: it leaks" in answer.json()["detail"]
    version = fleet.get(VERSION).json()
    assert (version["invalid_reason"], version["invalidated_by"]) == ("it leaks", "ada")
    assert fleet.get("/api/v1/models").json()["items"][0]["invalid"] == 1
    assert fleet.get("/api/v1/audit").json()["items"][0]["action"] == "model.invalidate"
    missing = fleet.post("/api/v1/models/slm/versions/9:invalidate", json=body)
    assert (missing.status_code, missing.json()["code"]) == (404, "not-found")


def test_what_is_gone_is_a_410() -> None:
    assert status_of(GoneError("no longer served")) == 410


def test_a_simulation_reads_and_changes_nothing(fleet: TestClient) -> None:
    never = fleet.post(f"{PATH}:simulate", json={})
    assert (never.status_code, never.json()["code"]) == (409, "conflict")
    fleet.post(f"{PATH}:start", json={})
    before = fleet.get(PATH).json()
    asked = {"policy": {"pace": {"max_in_flight": 1}}, "unknown": "succeed"}
    answer = fleet.post(f"{PATH}:simulate", json=asked)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["devices"], said["without_answer"], len(said["drawn"])) == (3, 3, 3)
    assert (said["recorded"]["state"], said["replayed"]["state"]) == ("BUILDING", "SUCCEEDED")
    assert fleet.get(PATH).json() == before
    for body, field in (
        ({"unknown": "perhaps"}, "unknown"),
        ({"policy": {"soak": "soon"}, "unknown": "fail"}, "spec.soak"),
        ({}, "unknown"),
    ):
        wrong = fleet.post(f"{PATH}:simulate", json=body)
        assert (wrong.status_code, wrong.json()["field"]) == (422, field)
