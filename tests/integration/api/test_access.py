import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from control_plane.api.main import create_app
from control_plane.api.session import COOKIE, PUBLIC, STATIC
from control_plane.bootstrap import Application
from tests.integration.api.support import api_token, client_of, enrol_with

HTML = {"Accept": "text/html"}


def routes_of(container: object) -> Iterator[APIRoute]:
    """Every route, also of routers that were included."""
    for route in getattr(container, "routes", []):
        if isinstance(route, APIRoute):
            yield route
        else:
            yield from routes_of(getattr(route, "original_router", route))


def every_request(app: FastAPI) -> list[tuple[str, str]]:
    return [
        (method, re.sub(r"{[^}]*}", "x", route.path))
        for route in routes_of(app)
        if route.path not in PUBLIC and not route.path.startswith(STATIC)
        for method in sorted(route.methods or ())
    ]


def test_every_route_but_the_public_ones_refuses_a_stranger(sqlite_app: Application) -> None:
    app = create_app(sqlite_app)
    asked = every_request(app)
    with TestClient(app) as client:
        answers = {(m, p): client.request(m, p).status_code for m, p in asked}
    assert len(answers) > 40
    assert set(answers.values()) == {401}, answers


def test_the_routes_that_are_asked_are_all_that_the_document_lists(
    sqlite_app: Application,
) -> None:
    app = create_app(sqlite_app)
    listed = {
        (method.upper(), re.sub(r"{[^}]*}", "x", path))
        for path, item in app.openapi()["paths"].items()
        for method in item
        if path not in PUBLIC
    }
    assert listed <= set(every_request(app))


@pytest.mark.parametrize(
    "header",
    [
        "Bearer fla_0123456789abcdef_" + "A" * 43,
        "Bearer nonsense",
        "Bearer ",
        "Basic YWRhOng=",
        "Bearer \u00e9".encode().decode("latin-1"),
    ],
)
def test_an_unknown_token_is_refused(stranger: TestClient, header: str) -> None:
    answer = stranger.get("/api/v1/devices", headers={b"authorization": header.encode("latin-1")})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_device_secret_opens_the_device_side_only(client: TestClient) -> None:
    device = {"Authorization": f"Bearer {enrol_with(client, 'edge-1')['secret']}"}
    assert client.get("/api/v1/devices", headers=device).status_code == 401
    assert client.get(f"/device/v1/blobs/{'a' * 64}", headers=device).status_code == 404


def test_an_api_token_does_not_open_the_device_side(client: TestClient) -> None:
    assert client.get(f"/device/v1/blobs/{'a' * 64}").status_code == 401


def test_a_browser_without_a_session_is_sent_to_the_login_page(stranger: TestClient) -> None:
    answer = stranger.post("/logout", headers=HTML, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def test_a_login_link_opens_a_session_and_leaves_the_token_behind(
    sqlite_app: Application, stranger: TestClient
) -> None:
    token = api_token(sqlite_app)
    answer = stranger.get(f"/login?token={token}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert token not in cookie
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert stranger.get("/api/v1/devices").status_code == 200


def test_a_session_acts_in_the_name_of_its_person(
    sqlite_app: Application, stranger: TestClient
) -> None:
    stranger.get(f"/login?token={api_token(sqlite_app, 'grace')}", follow_redirects=False)
    assert stranger.post("/api/v1/enrollment-tokens", json={}).status_code == 201
    entries = stranger.get("/api/v1/audit").json()["items"]
    assert entries[0]["actor"] == "grace"


def test_the_login_form_says_when_a_token_is_wrong(stranger: TestClient) -> None:
    answer = stranger.post("/login", data={"token": "fla_wrong", "next": "/"})
    assert answer.status_code == 401
    assert 'role="alert"' in answer.text
    assert COOKIE not in stranger.cookies


def test_the_login_form_opens_a_session(sqlite_app: Application, stranger: TestClient) -> None:
    body = {"token": api_token(sqlite_app), "next": "/rollouts?state=HALTED"}
    answer = stranger.post("/login", data=body, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/rollouts?state=HALTED")


@pytest.mark.parametrize(
    "target", ["//evil.example/", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"]
)
def test_a_login_never_leads_to_another_site(
    sqlite_app: Application, stranger: TestClient, target: str
) -> None:
    query = {"token": api_token(sqlite_app), "next": target}
    answer = stranger.get("/login", params=query, follow_redirects=False)
    assert answer.headers["location"] == "/"


def test_the_login_page_shows_what_it_was_given_as_text(stranger: TestClient) -> None:
    page = stranger.get("/login", params={"next": '/"><script>alert(1)</script>'}).text
    assert "<script>" not in page


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_a_page_of_another_site_cannot_act_with_the_session(
    sqlite_app: Application, stranger: TestClient, headers: dict[str, str]
) -> None:
    stranger.get(f"/login?token={api_token(sqlite_app)}", follow_redirects=False)
    answer = stranger.post("/api/v1/enrollment-tokens", json={}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_a_session_ends_with_its_cookie(sqlite_app: Application, stranger: TestClient) -> None:
    stranger.get(f"/login?token={api_token(sqlite_app)}", follow_redirects=False)
    stranger.post("/logout", follow_redirects=False)
    assert stranger.get("/api/v1/devices").status_code == 401


@pytest.mark.parametrize("path", ["/login", "/healthz", "/api/v1/devices", "/nowhere"])
def test_every_answer_carries_the_strict_headers(stranger: TestClient, path: str) -> None:
    headers = stranger.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


def test_health_and_readiness_need_no_token(stranger: TestClient) -> None:
    assert stranger.get("/healthz").json() == {"status": "ok"}
    answer = stranger.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["checks"]["database"] == "ok"


def test_readiness_fails_without_the_database(sqlite_app: Application) -> None:
    settings = sqlite_app.settings.model_copy(
        update={"database_url": "sqlite:////nowhere/at/all/flotilla.db"}
    )
    lost = Application(settings)
    with client_of(lost) as client:
        answer = client.get("/readyz")
    lost.close()
    assert answer.status_code == 503
    assert answer.json()["checks"]["database"].startswith("failed")


def test_metrics_count_requests_by_route_and_never_by_what_strangers_choose(
    client: TestClient,
) -> None:
    enrol_with(client, "edge-1")
    client.get("/api/v1/devices/edge-1")
    client.get("/nowhere/at/all")
    text = client.get("/metrics").text
    assert 'route="/api/v1/devices/{device}",status="200"' in text
    assert 'route="unmatched",status="404"' in text
    assert "flotilla_devices 1.0" in text
    assert "edge-1" not in text
    assert "nowhere" not in text


def test_an_unknown_path_is_a_problem(stranger: TestClient) -> None:
    answer = stranger.get("/nowhere")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_openapi_document_names_every_room_and_how_to_authenticate(
    stranger: TestClient,
) -> None:
    found = stranger.get("/openapi.json").json()
    for room in ("devices", "models", "blueprints", "artifacts", "rollouts", "audit"):
        assert f"/api/v1/{room}" in found["paths"]
    assert found["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
