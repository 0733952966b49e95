"""Webhooks against a real receiver: what the API says is told, signed, and once accepted, done."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from control_plane.bootstrap import Application
from control_plane.gateway.courier import Courier, send
from control_plane.services import webhooks
from control_plane.services.scope import Scope
from control_plane.services.webhooks import RETRIES_S, Answer, Letter

HALT = "dev.flotilla.rollout.halt"
OFFER = "dev.flotilla.rollout.offer"
WAIT_S = 20.0


class Receiver:
    """A web server that answers with the statuses it was given, then with 204."""

    def __init__(self) -> None:
        self.got: Queue[tuple[dict[str, str], bytes]] = Queue()
        self.statuses: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.put((dict(self.headers), body))  # before whoever asked goes on
                status = receiver.statuses.pop(0) if receiver.statuses else 204
                self.send_response(status)
                if status in (301, 302):
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    one.thread.start()
    yield one
    one.server.shutdown()
    one.thread.join()
    one.server.server_close()


def hook(client: TestClient, url: str, *events: str) -> tuple[str, str]:
    made = client.post("/api/v1/webhooks", json={"url": url, "events": list(events)})
    assert made.status_code == 201, made.text
    return made.json()["webhook"]["id"], made.json()["secret"]


def tell(app: Application, kind: str, data: object = None) -> None:
    with app.scope("test") as scope:
        webhooks.emit(scope, kind, "rollouts/slm-1", {"n": 1} if data is None else data)


def due(app: Application) -> list[Letter]:
    with app.scope("test") as scope:
        return webhooks.take_due(scope, limit=10)


def settle(app: Application, letter: Letter, answer: Answer) -> bool:
    with app.scope("test") as scope:
        return webhooks.settle(scope, letter.delivery, answer)


def test_an_event_arrives_signed_and_as_a_cloud_event(
    app: Application, both: TestClient, receiver: Receiver
) -> None:
    webhook, secret = hook(both, receiver.url)
    tell(app, "rollout.halt", {"wave": 0, "reason": "zu langsam \u2713"})
    with Courier(app.open(), threading.Event()):
        headers, body = receiver.got.get(timeout=WAIT_S)
    event = Webhook(secret).verify(body, headers)
    assert event["specversion"] == "1.0"
    assert event["type"] == HALT
    assert event["subject"] == "rollouts/slm-1"
    assert event["data"] == {"wave": 0, "reason": "zu langsam \u2713"}
    assert event["id"] == headers["webhook-id"]
    assert headers["Content-Type"].startswith("application/cloudevents+json")
    sent = both.get(f"/api/v1/webhooks/{webhook}/deliveries").json()["items"]
    assert [(one["attempt"], one["answer"]) for one in sent] == [(1, "204 No Content")]
    assert sent[0]["accepted_at"]
    assert due(app) == []


def test_another_secret_or_a_flipped_byte_does_not_verify(
    app: Application, both: TestClient, receiver: Receiver
) -> None:
    _, secret = hook(both, receiver.url)
    tell(app, "rollout.halt")
    (letter,) = due(app)
    body = letter.delivery.body
    assert Webhook(secret).verify(body, letter.headers)
    flipped = body.replace(b'"n":1', b'"n":2')
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(flipped, letter.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "A" * 44).verify(body, letter.headers)


def test_a_failed_attempt_is_repeated_later_and_later_and_then_given_up(
    app: Application, both: TestClient
) -> None:
    webhook, _ = hook(both, "http://127.0.0.1:9/closed")
    tell(app, "rollout.halt")
    waits: list[timedelta] = []
    now = None
    for _ in range(len(RETRIES_S) + 1):
        with app.scope("test") as scope:
            later = scope if now is None else _at(scope, now)
            (letter,) = webhooks.take_due(later, limit=10)
            assert webhooks.take_due(later, limit=10) == []  # nobody else gets it meanwhile
            webhooks.settle(later, letter.delivery, Answer(0, "ConnectError: refused"))
            (one,) = webhooks.deliveries(later, webhook).items
            if one.next_at is not None:
                waits.append(one.next_at - later.now)
                now = one.next_at
    assert [wait.total_seconds() for wait in waits] == list(RETRIES_S)
    assert due(app) == []
    (one,) = both.get(f"/api/v1/webhooks/{webhook}/deliveries").json()["items"]
    assert one["next_at"] is None
    assert one["accepted_at"] is None
    assert one["attempt"] == len(RETRIES_S) + 1


def test_a_delivery_taken_again_after_its_lease_is_settled_by_the_newer_sender_only(
    app: Application, both: TestClient
) -> None:
    hook(both, "http://127.0.0.1:9/closed")
    tell(app, "rollout.halt")
    (old,) = due(app)
    with app.scope("test") as scope:
        later = _at(scope, scope.now + timedelta(seconds=webhooks.LEASE_S + 1))
        (new,) = webhooks.take_due(later, limit=10)
    assert not settle(app, old, Answer(500, "late"))
    assert settle(app, new, Answer(200, "OK"))


def test_gone_disables_the_webhook_and_whatever_waited(
    app: Application, both: TestClient, receiver: Receiver
) -> None:
    webhook, _ = hook(both, receiver.url)
    receiver.statuses = [410]
    tell(app, "rollout.halt")
    tell(app, "rollout.succeed")
    first, _second = due(app)
    with httpx.Client() as client:
        settle(app, first, send(client, first))
    (row,) = both.get("/api/v1/webhooks").json()["items"]
    assert row["disabled_why"] == "it answered 410 Gone"
    assert row["waiting"] == 0
    tell(app, "rollout.halt")
    assert due(app) == []
    assert both.post(f"/api/v1/webhooks/{webhook}:test").status_code == 422


def test_a_redirect_is_not_followed(app: Application, both: TestClient, receiver: Receiver) -> None:
    hook(both, receiver.url)
    receiver.statuses = [302]
    tell(app, "rollout.halt")
    (letter,) = due(app)
    with httpx.Client(follow_redirects=False) as client:
        assert send(client, letter).status == 302
    assert receiver.got.qsize() == 1


def test_frequent_events_go_only_to_who_names_them(app: Application, both: TestClient) -> None:
    hook(both, "http://one.example/")
    hook(both, "http://two.example/", OFFER)
    tell(app, "rollout.offer")
    tell(app, "rollout.halt")
    assert [(one.url, one.delivery.type) for one in due(app)] == [
        ("http://two.example/", OFFER),
        ("http://one.example/", HALT),
    ]


def test_what_is_rolled_back_is_never_told(app: Application, both: TestClient) -> None:
    hook(both, "http://one.example/")

    def fail() -> None:
        with app.scope("test") as scope:
            webhooks.emit(scope, "rollout.halt", "rollouts/slm-1", {})
            raise RuntimeError("the change fails")

    with pytest.raises(RuntimeError):
        fail()
    assert due(app) == []


def test_what_is_old_is_forgotten_once_it_waits_for_nothing(
    app: Application, both: TestClient
) -> None:
    webhook, _ = hook(both, "http://one.example/")
    tell(app, "rollout.halt")
    tell(app, "rollout.succeed")
    accepted, waiting = due(app)
    settle(app, accepted, Answer(200, "OK"))
    settle(app, waiting, Answer(500, "not now"))
    with app.scope("test") as scope:
        early = _at(scope, scope.now + timedelta(seconds=webhooks.KEEP_S - 60))
        late = _at(scope, scope.now + timedelta(seconds=webhooks.KEEP_S + 60))
        assert [webhooks.forget(early), webhooks.forget(late)] == [0, 1]
    (kept,) = both.get(f"/api/v1/webhooks/{webhook}/deliveries").json()["items"]
    assert kept["type"] == "dev.flotilla.rollout.succeed"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"url": "ftp://host/"}, "url"),
        ({"url": "https://"}, "url"),
        ({"url": "https://host:99999/"}, "url"),
        ({"url": "not an address"}, "url"),
        ({"url": "https://h\u00f6st/"}, "url"),
        ({"url": "https://host/", "events": ["rollout.halt"]}, "events"),
        ({"url": "https://host/", "colour": "red"}, "colour"),
    ],
)
def test_a_bad_webhook_is_refused_and_changes_nothing(
    client: TestClient, body: dict[str, Any], where: str
) -> None:
    answer = client.post("/api/v1/webhooks", json=body)
    assert answer.status_code == 422
    assert where in json.dumps(answer.json())
    assert client.get("/api/v1/webhooks").json()["items"] == []


def test_deleting_forgets_what_waits_and_is_audited(app: Application, both: TestClient) -> None:
    webhook, _ = hook(both, "http://one.example/")
    tell(app, "rollout.halt")
    assert both.post(f"/api/v1/webhooks/{webhook}:delete", json={"reason": "moved"}).is_success
    assert due(app) == []
    assert both.get(f"/api/v1/webhooks/{webhook}/deliveries").status_code == 404
    answer = both.get("/api/v1/audit", params={"filter": 'kind = "webhook"'})
    assert answer.is_success, answer.text
    acts = answer.json()["items"]
    assert [act["action"] for act in acts] == ["webhook.delete", "webhook.create"]
    assert "whsec" not in json.dumps(acts)


def _at(scope: Scope, now: datetime) -> Scope:
    return replace(scope, now=now)
