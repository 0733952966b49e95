"""Webhooks: who is told of decisions."""

from fastapi import APIRouter
from fastapi.responses import Response

from control_plane.api.call import Paging, Reading, Writing
from control_plane.api.schemas import Reason, WebhookRequest
from control_plane.domain.paging import Page
from control_plane.services import webhooks
from control_plane.services.webhooks import DeliveryView, NewWebhook, WebhookView

routes = APIRouter(prefix="/api/v1/webhooks", tags=["webhooks"])


@routes.get("")
def list_webhooks(call: Reading) -> Page[WebhookView]:
    """List every webhook; there are at most fifty."""
    return call.read(webhooks.list_webhooks)


@routes.post("", status_code=201, response_model=NewWebhook)
def create_webhook(wanted: WebhookRequest, call: Writing) -> Response:
    """Make a webhook; its secret, which signs what is sent, is shown once."""
    return call.write(
        lambda scope: webhooks.create(scope, url=wanted.url, events=wanted.events), status=201
    )


@routes.get("/{webhook}/deliveries")
def list_deliveries(webhook: str, call: Reading, page: Paging) -> Page[DeliveryView]:
    """List what was sent, and what waits, newest first, with the receiver's answer."""
    return call.read(lambda scope: webhooks.deliveries(scope, webhook, **page.query))


@routes.post("/{webhook}:test", response_model=WebhookView)
def test_webhook(webhook: str, call: Writing) -> Response:
    """Send an event that says only that it is a test."""
    return call.write(lambda scope: webhooks.test(scope, webhook))


@routes.post("/{webhook}:delete", response_model=WebhookView)
def delete_webhook(webhook: str, why: Reason, call: Writing) -> Response:
    """Forget a webhook and what waits for it."""
    return call.write(lambda scope: webhooks.delete(scope, webhook, reason=why.reason))
