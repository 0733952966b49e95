"""ETags, idempotency, uploads and documents."""

import copy
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from control_plane.bootstrap import Application
from tests.integration.api.support import BLUEPRINT, api_token, client_of

PATH = "/api/v1/blueprints/plain-cpu"


def changed(**limits: float) -> dict[str, Any]:
    document = copy.deepcopy(BLUEPRINT)
    document["spec"]["limits"] = limits
    return document


def test_a_blueprint_is_applied_and_read_back(both: TestClient) -> None:
    made = both.put(PATH, json=BLUEPRINT)
    assert made.status_code == 200
    found = both.get(PATH)
    assert found.json()["spec"] == BLUEPRINT["spec"]
    assert found.headers["etag"] == made.headers["etag"] == f'"{found.json()["revision"]}"'


def test_the_same_blueprint_again_changes_nothing(client: TestClient) -> None:
    first = client.put(PATH, json=BLUEPRINT)
    assert client.put(PATH, json=BLUEPRINT).headers["etag"] == first.headers["etag"]


def test_a_change_of_an_old_revision_is_refused(client: TestClient) -> None:
    read = client.put(PATH, json=BLUEPRINT).headers["etag"]
    headers = {"If-Match": read}
    assert client.put(PATH, json=changed(memory_mb=1), headers=headers).status_code == 200
    late = client.put(PATH, json=changed(memory_mb=2), headers=headers)
    assert (late.status_code, late.json()["code"]) == (412, "precondition-failed")
    assert client.get(PATH).json()["spec"]["limits"] == {"memory_mb": 1.0}


def test_what_is_no_etag_is_refused(client: TestClient) -> None:
    answer = client.put(PATH, json=BLUEPRINT, headers={"If-Match": '"latest"'})
    assert (answer.status_code, answer.json()["field"]) == (422, "If-Match")


def test_a_document_must_have_the_name_of_its_address(client: TestClient) -> None:
    answer = client.put("/api/v1/blueprints/other", json=BLUEPRINT)
    assert (answer.status_code, answer.json()["field"]) == (422, "metadata.name")


def test_a_blueprint_without_recipes_is_refused_and_not_stored(client: TestClient) -> None:
    document = copy.deepcopy(BLUEPRINT)
    document["spec"]["recipes"] = []
    answer = client.put(PATH, json=document)
    assert (answer.status_code, answer.json()["field"]) == (422, "spec.recipes")
    assert client.get(PATH).status_code == 404


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": NaN}'])
def test_a_body_that_is_no_document_is_refused(client: TestClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.put(PATH, content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_repeated_post_with_its_key_is_answered_and_not_repeated(both: TestClient) -> None:
    headers = {"Idempotency-Key": "once"}
    first = both.post("/api/v1/enrollment-tokens", json={"uses": 2}, headers=headers)
    again = both.post("/api/v1/enrollment-tokens", json={"uses": 2}, headers=headers)
    assert (
        (again.status_code, again.content)
        == (first.status_code, first.content)
        == (
            201,
            first.content,
        )
    )
    assert again.headers["idempotency-replayed"] == "true"
    other = both.post("/api/v1/enrollment-tokens", json={"uses": 2})
    assert other.json()["token"] != first.json()["token"]


def test_a_key_that_was_used_for_another_request_is_refused(client: TestClient) -> None:
    headers = {"Idempotency-Key": "once"}
    client.post("/api/v1/enrollment-tokens", json={"uses": 2}, headers=headers)
    answer = client.post("/api/v1/enrollment-tokens", json={"uses": 3}, headers=headers)
    assert (answer.status_code, answer.json()["field"]) == (409, "Idempotency-Key")


def test_a_key_belongs_to_whoever_used_it(sqlite_app: Application, client: TestClient) -> None:
    headers = {"Idempotency-Key": "once"}
    mine = client.post("/api/v1/enrollment-tokens", json={}, headers=headers).json()["token"]
    with client_of(sqlite_app, api_token(sqlite_app, "grace")) as other:
        theirs = other.post("/api/v1/enrollment-tokens", json={}, headers=headers).json()["token"]
    assert mine != theirs


def test_a_refused_post_keeps_no_answer(client: TestClient) -> None:
    headers = {"Idempotency-Key": "once"}
    path = "/api/v1/devices/nobody:quarantine"
    assert client.post(path, json={}, headers=headers).status_code == 404
    answer = client.post("/api/v1/enrollment-tokens", json={}, headers=headers)
    assert answer.status_code == 201


def test_the_same_key_at_the_same_time_has_one_effect(both: TestClient) -> None:
    def ask(_: int) -> tuple[int, str]:
        answer = both.post(
            "/api/v1/enrollment-tokens", json={}, headers={"Idempotency-Key": "race"}
        )
        return answer.status_code, answer.json().get("token", "")

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(8)))
    assert {status for status, _ in answers} <= {201, 409}
    assert len({token for status, token in answers if status == 201}) == 1


def test_a_key_that_is_too_long_is_refused(client: TestClient) -> None:
    headers = {"Idempotency-Key": "x" * 129}
    answer = client.post("/api/v1/enrollment-tokens", json={}, headers=headers)
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


def test_an_upload_over_the_limit_is_refused(sqlite_app: Application) -> None:
    small = Application(sqlite_app.settings.model_copy(update={"upload_limit_bytes": 10}))
    digest = hashlib.sha256(b"x" * 11).hexdigest()
    with client_of(small, api_token(small)) as client:
        answer = client.put(f"/api/v1/blobs/{digest}", content=b"x" * 11)
        assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
        assert client.head(f"/api/v1/blobs/{digest}").status_code == 404
    small.close()


def test_a_large_upload_is_not_held_to_the_limit_of_documents(client: TestClient) -> None:
    body = b"x" * (3 << 20)
    digest = hashlib.sha256(body).hexdigest()
    made = client.put(f"/api/v1/blobs/{digest}", content=body)
    assert (made.status_code, made.json()) == (201, {"sha256": digest, "size": len(body)})
    head = client.head(f"/api/v1/blobs/{digest}")
    assert head.headers["content-length"] == str(len(body))


def test_a_document_without_a_length_is_refused(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"{}"

    answer = client.post("/api/v1/enrollment-tokens", content=chunks())
    assert (answer.status_code, answer.json()["code"]) == (411, "length-required")


def test_a_version_whose_files_are_not_there_is_refused(client: TestClient) -> None:
    files = [{"path": "model.onnx", "size": 3, "sha256": "a" * 64}]
    answer = client.post("/api/v1/models/slm/versions", json={"version": "1", "files": files})
    assert (answer.status_code, answer.json()["field"]) == (422, "files")
    assert client.get("/api/v1/models").json()["items"] == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sha256": "nonsense"}, "files[0].sha256"),
        ({"size": -1}, "files[0].size"),
        ({"mode": 7}, "files[0].mode"),
    ],
)
def test_a_wrong_file_entry_is_named(
    client: TestClient, change: dict[str, object], field: str
) -> None:
    entry = {"path": "model.onnx", "size": 3, "sha256": "a" * 64} | change
    answer = client.post("/api/v1/models/slm/versions", json={"version": "1", "files": [entry]})
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_builds_of_an_unknown_version_are_refused(client: TestClient) -> None:
    client.put(PATH, json=BLUEPRINT)
    answer = client.post("/api/v1/builds", json={"model": "slm", "version": "9"})
    assert answer.status_code == 404
    assert client.get("/api/v1/builds").json()["items"] == []


@pytest.mark.parametrize("kind", ["Blueprint", "Rollout"])
def test_schemas_of_documents_are_served(client: TestClient, kind: str) -> None:
    assert client.get(f"/api/v1/schemas/{kind}").json()["properties"]["spec"]


def test_the_schema_of_an_unknown_kind_is_refused(client: TestClient) -> None:
    answer = client.get("/api/v1/schemas/Rolout")
    assert answer.status_code == 422
    assert "Rollout" in answer.json()["detail"]


def test_keys_and_unknown_bundles(client: TestClient, sqlite_app: Application) -> None:
    assert set(client.get("/api/v1/keys").json()["bundle"]) == set(
        sqlite_app.keyring.trusted_keys().bundle
    )
    assert client.get(f"/api/v1/bundles/{'a' * 64}").status_code == 404
