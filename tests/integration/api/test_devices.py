import hashlib
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from control_plane.api.middleware import MAX_BODY
from control_plane.bootstrap import Application
from control_plane.config import Settings
from tests.integration.api.support import api_token, client_of, enrol_with, request_of


def test_a_device_enrols_with_a_token_and_shows_in_the_list(both: TestClient) -> None:
    reply = enrol_with(both, "edge-1", site="vie")
    assert reply["device"] == "edge-1"
    assert both.get("/device/v1/ca").text == reply["ca"]
    listed = both.get("/api/v1/devices", params={"filter": 'labels.site = "vie"'}).json()
    assert [device["id"] for device in listed["items"]] == ["edge-1"]
    assert both.get("/api/v1/devices/edge-1").json()["labels"] == {"site": "vie"}


def test_a_token_enrols_as_many_devices_as_it_says(client: TestClient) -> None:
    made = client.post("/api/v1/enrollment-tokens", json={"uses": 1})
    assert made.status_code == 201
    token = made.json()["token"]
    body = {"token": token, "csr": request_of("edge-1")}
    assert client.post("/device/v1/enroll", json=body).status_code == 201
    body["csr"] = request_of("edge-2")
    answer = client.post("/device/v1/enroll", json=body)
    assert (answer.status_code, answer.json()["field"]) == (401, "token")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b'{"token": 7, "csr": ""}', 422),
        (b'{"token": "flt1.short", "csr": "no"}', 422),
        (b'{"token":"' + b"x" * 70_000 + b'"}', 422),
        (b"x" * (MAX_BODY + 1), 413),
    ],
)
def test_a_malformed_enrolment_is_refused_and_changes_nothing(
    client: TestClient, body: bytes, status: int
) -> None:
    answer = client.post("/device/v1/enroll", content=body)
    assert answer.status_code == status
    assert answer.json()["code"]
    assert client.get("/api/v1/devices").json()["items"] == []


def test_pages_follow_each_other_and_miss_nobody(both: TestClient) -> None:
    names = [f"edge-{number}" for number in range(5)]
    for name in names:
        enrol_with(both, name)
    seen: list[str] = []
    cursor, pages = "", 0
    while True:
        page = both.get("/api/v1/devices", params={"limit": 2, "cursor": cursor}).json()
        seen += [device["id"] for device in page["items"]]
        cursor, pages = page["next"], pages + 1
        if not cursor:
            break
    assert (sorted(seen), pages) == (names, 3)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 501}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"filter": "colour = "}, "filter"),
        ({"filter": 'flavour = "sweet"'}, "filter"),
        ({"filter": "x" * 2001}, "filter"),
    ],
)
def test_a_wrong_query_is_named(client: TestClient, query: dict[str, Any], field: str) -> None:
    answer = client.get("/api/v1/devices", params=query)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert answer.json()["field"] == field


@pytest.mark.parametrize("path", ["", "/history", ":label", ":quarantine", ":unquarantine"])
def test_an_unknown_device_is_not_found(client: TestClient, path: str) -> None:
    body = {"labels": {"a": "b"}} if path == ":label" else {"reason": "why"}
    method = "POST" if path.startswith(":") else "GET"
    answer = client.request(
        method, f"/api/v1/devices/nobody{path}", json=body if method == "POST" else None
    )
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert "nobody" in answer.json()["detail"]


def test_labels_are_set_and_taken_away_and_audited(client: TestClient) -> None:
    enrol_with(client, "edge-1", site="vie")
    body = {"labels": {"site": None, "ring": "a"}, "reason": "moved"}
    assert client.post("/api/v1/devices/edge-1:label", json=body).json()["labels"] == {"ring": "a"}
    entry = client.get("/api/v1/audit").json()["items"][0]
    assert (entry["actor"], entry["reason"], entry["object_name"]) == ("ada", "moved", "edge-1")


@pytest.mark.parametrize(
    "body",
    [
        {"labels": {}},
        {"labels": {"site": 7}},
        {"labels": {"site": "vie"}, "colour": "red"},
        {"labels": {"bad key!": "x"}},
        {},
        [],
    ],
)
def test_wrong_labels_are_named_and_change_nothing(client: TestClient, body: object) -> None:
    enrol_with(client, "edge-1", site="vie")
    answer = client.post("/api/v1/devices/edge-1:label", json=body)
    assert answer.status_code == 422
    assert answer.json()["field"]
    assert client.get("/api/v1/devices/edge-1").json()["labels"] == {"site": "vie"}


def test_a_quarantined_device_is_shut_out_until_it_is_let_in(client: TestClient) -> None:
    reply = enrol_with(client, "edge-1")
    device = {"Authorization": f"Bearer {reply['secret']}"}
    path = f"/device/v1/bundles/{'a' * 64}"
    assert client.get(path, headers=device).status_code == 404
    shut = client.post("/api/v1/devices/edge-1:quarantine", json={"reason": "stolen"})
    assert shut.json()["state"] == "quarantined"
    assert client.get(path, headers=device).status_code in (401, 403)
    client.post("/api/v1/devices/edge-1:unquarantine", json={"reason": "found"})
    assert client.get(path, headers=device).status_code == 404


def test_a_device_gets_no_bytes_that_it_was_not_offered(client: TestClient, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    assert client.put(f"/api/v1/blobs/{digest}", content=b"secret").status_code == 201
    device = {"Authorization": f"Bearer {enrol_with(client, 'edge-1')['secret']}"}
    assert client.get(f"/device/v1/blobs/{digest}", headers=device).status_code == 404
    assert client.get(f"/api/v1/blobs/{digest}").content == b"secret"


@pytest.mark.parametrize("digest", ["a" * 63, "A" * 64, "..%2f..%2fetc", "z" * 64])
def test_what_is_no_digest_is_refused(client: TestClient, digest: str) -> None:
    device = {"Authorization": f"Bearer {enrol_with(client, 'edge-1')['secret']}"}
    for room in ("blobs", "bundles"):
        answer = client.get(f"/device/v1/{room}/{digest}", headers=device)
        assert answer.status_code in (404, 422)
    assert client.put(f"/api/v1/blobs/{digest}", content=b"x").status_code in (404, 422)


def test_the_list_is_sorted_as_asked_and_the_fleet_comes_in_numbers(both: TestClient) -> None:
    for name in ("edge-1", "edge-2", "edge-3"):
        enrol_with(both, name, site="vie" if name < "edge-3" else "fra")
    first = both.get("/api/v1/devices", params={"sort": "-health", "limit": 2}).json()
    assert [one["id"] for one in first["items"]] == ["edge-3", "edge-2"]
    wrong = both.get("/api/v1/devices", params={"sort": "health", "cursor": first["next"]})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "cursor")
    unknown = both.get("/api/v1/devices", params={"sort": "colour"})
    assert (unknown.status_code, unknown.json()["field"]) == (422, "sort")
    summary = both.get("/api/v1/devices:summary").json()
    assert (summary["total"], summary["by_health"]) == (3, {"offline": 3})
    assert summary["by_site"] == {"vie": 2, "fra": 1}


@pytest.mark.parametrize("path", ["/api/v1/devices", "/devices", "/live/devices"])
def test_a_list_that_takes_too_long_is_ended_and_says_what_is_quick(
    postgres_url: str, tmp_path: Path, path: str
) -> None:
    app = Application(Settings(data=tmp_path, database_url=postgres_url, read_limit_s=0.3))
    with client_of(app, api_token(app)) as client, app.scope("test") as holder:
        # Whoever waits is slow too, and this wait has no end.
        holder.tx.execute(text("LOCK TABLE device IN ACCESS EXCLUSIVE MODE"))
        answer = client.get(path)
    assert answer.status_code == 503
    assert "ask for fewer" in answer.text
    if path.startswith("/api/"):
        assert answer.json()["code"] == "too-slow"
    app.close()
