"""Webhooks: who is told of decisions, what they are told, and how often it is tried.

An event is a CloudEvents 1.0 object in structured JSON; its request is signed as Standard Webhooks
(standardwebhooks.com) says, so that receivers check it with a library of their language. `data` is
what the API answers for the same thing, byte for byte. An event is stored in the transaction that
caused it and is sent at least once: a receiver drops what it has seen, by the event's id.
"""

import base64
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import to_json
from standardwebhooks import Webhook

from control_plane.domain.errors import InvalidError, NotFoundError
from control_plane.domain.paging import DEFAULT_LIMIT, MAX_LIMIT, Page
from control_plane.services import audit
from control_plane.services.cursors import number_cursor
from control_plane.services.scope import Scope
from control_plane.store import webhooks as store
from control_plane.store.webhooks import DeliveryRow, WebhookRow

PREFIX = "dev.flotilla."
TEST = PREFIX + "webhook.test"
ROLLOUT = PREFIX + "rollout."
FREQUENT = frozenset({ROLLOUT + kind for kind in ("offer", "hold", "withdraw", "time_out")})
"""Sent only to a webhook that names them: a rollout makes many."""

SECRET_BYTES = 32
MOST_WEBHOOKS = 50
MAX_URL = 2048
LEASE_S = 60.0  # longer than a request may take
# Standard Webhooks, "Delivery": attempts over some days, ever farther apart.
RETRIES_S = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
KEEP_S = 7 * 86400
GONE = 410


@dataclass(frozen=True)
class WebhookView:
    """A webhook as people see it: without its secret."""

    id: str
    url: str
    events: list[str]
    created_by: str
    created_at: datetime
    disabled_at: datetime | None
    disabled_why: str
    waiting: int
    """Deliveries that it has not accepted yet."""


@dataclass(frozen=True)
class NewWebhook:
    """A webhook and its secret, which is shown once."""

    webhook: WebhookView
    secret: str


@dataclass(frozen=True)
class DeliveryView:
    """One event on its way."""

    id: int
    event: str
    type: str
    created_at: datetime
    attempt: int
    next_at: datetime | None
    accepted_at: datetime | None
    answer: str


@dataclass(frozen=True)
class Letter:
    """One signed request, ready to send."""

    delivery: DeliveryRow
    url: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """How an attempt ended: an HTTP status, or none and why."""

    status: int = 0
    text: str = ""

    @property
    def accepted(self) -> bool:
        return 200 <= self.status < 300  # noqa: PLR2004 - success, in HTTP


def create(scope: Scope, *, url: str, events: list[str] | None = None) -> NewWebhook:
    """Store a webhook.

    Raises:
        InvalidError: no address of a web server, or an unknown type of event.
    """
    _check_url(url)
    wanted = sorted(set(events or []))
    for name in wanted:
        if not name.startswith(ROLLOUT):
            raise InvalidError(
                f"no event is called {name[:80]!r}; they are {ROLLOUT}KIND, such as {ROLLOUT}halt",
                field="events",
            )
    if len(store.every(scope.tx)) >= MOST_WEBHOOKS:
        raise InvalidError(f"there are {MOST_WEBHOOKS} webhooks, which is the most; delete one")
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    row = WebhookRow(scope.new_id(), url, secret, tuple(wanted), scope.actor, scope.now, None, "")
    store.add(scope.tx, {**vars(row), "events": wanted})
    audit.record(
        scope,
        action="webhook.create",
        object_kind="webhook",
        object_name=row.id,
        after={"url": url, "events": wanted},
    )
    return NewWebhook(_view(scope, row), secret)


def list_webhooks(scope: Scope) -> Page[WebhookView]:
    """Return every webhook."""
    return Page([_view(scope, row) for row in store.every(scope.tx)])


def delete(scope: Scope, webhook_id: str, *, reason: str = "") -> WebhookView:
    """Forget a webhook and what waits for it; return what it was."""
    row = _find(scope, webhook_id)
    gone = _view(scope, row)
    store.delete(scope.tx, row.id)
    audit.record(
        scope,
        action="webhook.delete",
        object_kind="webhook",
        object_name=row.id,
        reason=reason,
        before={"url": row.url, "events": list(row.events)},
    )
    return gone


def deliveries(
    scope: Scope, webhook_id: str, *, limit: int = DEFAULT_LIMIT, cursor: str = ""
) -> Page[DeliveryView]:
    """Return what was sent to a webhook, and what waits, the newest first."""
    row = _find(scope, webhook_id)
    size = max(1, min(limit, MAX_LIMIT))
    before = number_cursor(cursor)
    rows = store.deliveries(scope.tx, row.id, before_id=before, limit=size + 1)
    end = str(rows[size - 1].id) if len(rows) > size else ""
    return Page([_delivery(one) for one in rows[:size]], end)


def test(scope: Scope, webhook_id: str) -> WebhookView:
    """Send an event that says only that it is a test."""
    row = _find(scope, webhook_id)
    if row.disabled_at is not None:
        raise InvalidError(f"webhook {row.id} is disabled: {row.disabled_why}; make a new one")
    store.put(scope.tx, [_stored(scope, row.id, TEST, f"webhooks/{row.id}", {"test": True})])
    return _view(scope, row)


def emit(scope: Scope, kind: str, subject: str, data: object) -> None:
    """Tell whoever wants to know, once this transaction commits.

    Args:
        scope: the scope.
        kind: what happened, below `PREFIX`: ``rollout.halt``.
        subject: what it happened to, as its path below ``/api/v1/``: ``rollouts/NAME``.
        data: what the API answers for it.
    """
    name = PREFIX + kind
    told = [row for row in store.every(scope.tx) if _wants(row, name)]
    store.put(scope.tx, [_stored(scope, row.id, name, subject, data) for row in told])


def take_due(scope: Scope, *, limit: int) -> list[Letter]:
    """Take due deliveries, signed for this attempt."""
    until = scope.now + timedelta(seconds=LEASE_S)
    hooks = {row.id: row for row in store.every(scope.tx)}
    due = store.lease(scope.tx, scope.now, until=until, limit=limit)
    return [_letter(scope, hooks[one.webhook_id], one) for one in due if one.webhook_id in hooks]


def settle(scope: Scope, delivery: DeliveryRow, answer: Answer) -> bool:
    """Note how an attempt ended; return whether it was accepted.

    A receiver that says 410 Gone wants nothing more. One that has failed every attempt is not
    disabled: the event is given up, and the next one is tried again.
    """
    text = f"{answer.status} {answer.text}".strip() if answer.status else answer.text
    more = None
    if not answer.accepted and delivery.attempt <= len(RETRIES_S):
        more = scope.now + timedelta(seconds=RETRIES_S[delivery.attempt - 1])
    accepted_at = scope.now if answer.accepted else None
    mine = store.settle(
        scope.tx, delivery, answer=text[:500], next_at=more, accepted_at=accepted_at
    )
    if mine and answer.status == GONE:
        store.disable(scope.tx, scope.now, delivery.webhook_id, "it answered 410 Gone")
    return mine and answer.accepted


def forget(scope: Scope, *, limit: int = 10_000) -> int:
    """Forget old deliveries that wait for nothing; return how many."""
    return store.forget(scope.tx, scope.now - timedelta(seconds=KEEP_S), limit)


def _wants(row: WebhookRow, name: str) -> bool:
    if row.disabled_at is not None:
        return False
    return name in row.events if row.events else name not in FREQUENT


def _stored(scope: Scope, webhook_id: str, name: str, subject: str, data: object) -> dict[str, Any]:
    event_id = scope.new_id()
    body = {
        "specversion": "1.0",
        "id": event_id,
        "source": scope.settings.url,
        "type": name,
        "subject": subject,
        "time": scope.now.astimezone(UTC),
        "datacontenttype": "application/json",
        "data": data,
    }
    return {
        "webhook_id": webhook_id,
        "event_id": event_id,
        "type": name,
        "body": to_json(body),
        "created_at": scope.now,
        "attempt": 0,
        "next_at": scope.now,
        "answer": "",
    }


def _letter(scope: Scope, hook: WebhookRow, delivery: DeliveryRow) -> Letter:
    signature = Webhook(hook.secret).sign(delivery.event_id, scope.now, delivery.body.decode())
    headers = {
        "Content-Type": "application/cloudevents+json; charset=UTF-8",
        "User-Agent": "flotilla",
        "webhook-id": delivery.event_id,
        "webhook-timestamp": str(int(scope.now.timestamp())),
        "webhook-signature": signature,
    }
    return Letter(delivery, hook.url, headers)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or len(url) > MAX_URL or not url.isascii():
        raise InvalidError(
            f"{url[:80]!r} is no address: use https://HOST/PATH, at most {MAX_URL} characters",
            field="url",
        )


def _find(scope: Scope, webhook_id: str) -> WebhookRow:
    row = store.find(scope.tx, webhook_id)
    if row is None:
        raise NotFoundError(f"no webhook {webhook_id[:64]!r}; `flotilla webhook list` shows them")
    return row


def _view(scope: Scope, row: WebhookRow) -> WebhookView:
    return WebhookView(
        id=row.id,
        url=row.url,
        events=list(row.events),
        created_by=row.created_by,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        disabled_why=row.disabled_why,
        waiting=store.waiting(scope.tx, row.id),
    )


def _delivery(row: DeliveryRow) -> DeliveryView:
    return DeliveryView(
        id=row.id,
        event=row.event_id,
        type=row.type,
        created_at=row.created_at,
        attempt=row.attempt,
        next_at=row.next_at,
        accepted_at=row.accepted_at,
        answer=row.answer,
    )
