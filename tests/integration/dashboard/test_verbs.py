"""What people do on the pages: verbs with a reason, sessions, keys, the theme."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from control_plane.bootstrap import Application
from control_plane.services import audit, rollouts
from control_plane.services.rollout_views import RolloutView
from tests.integration.dashboard.conftest import Visit, token_of
from tests.support import seed_fleet
from tests.support.browser import LiveServer

Contexts = Callable[..., BrowserContext]
RUNNING, HALTED, AWAITING = seed_fleet.RUNNING, seed_fleet.HALTED, seed_fleet.AWAITING


def rollout(fleet: Application, name: str) -> RolloutView:
    with fleet.reading("test") as scope:
        return rollouts.get(scope, name)


def act(page: Page, label: str, reason: str, **fields: str) -> None:
    page.locator("#live").get_by_role("button", name=label).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill(reason)
    for name, value in fields.items():
        dialog.locator(f"[name={name}]").select_option(value)
    with page.expect_navigation():
        dialog.get_by_role("button", name=label).click()
    expect(page.locator("h1")).to_contain_text("support-slm")


@pytest.mark.parametrize(
    ("name", "label", "state"),
    [
        (RUNNING, "Pause", "PAUSED"),
        (AWAITING, "Approve", "RUNNING"),
        (AWAITING, "Deny", "ABORTED"),
        (HALTED, "Resume", "RUNNING"),
        (HALTED, "Revert", "REVERTING"),
    ],
)
def test_a_verb_with_a_reason_changes_the_rollout_and_is_audited(
    fleet: Application, visit: Visit, name: str, label: str, state: str
) -> None:
    page = visit(f"/rollouts/{name}").page
    act(page, label, "seen on site")
    assert rollout(fleet, name).state == state
    expect(page.locator("ol.decisions")).to_contain_text("seen on site")
    with fleet.reading("test") as scope:
        newest = audit.list_audit(scope, limit=1).items[0]
    assert (newest.object_name, newest.actor, newest.reason) == (name, "ada", "seen on site")


def test_skipping_to_the_next_wave_opens_it(fleet: Application, visit: Visit) -> None:
    page = visit(f"/rollouts/{RUNNING}").page
    act(page, "Skip to next wave", "the rest is urgent")
    assert rollout(fleet, RUNNING).wave == 2
    expect(page.locator(".wave.open")).to_contain_text("everyone")


@pytest.mark.parametrize(("mode", "state"), [("keep", "ABORTED"), ("revert", "REVERTING")])
def test_an_abort_says_what_becomes_of_updated_devices(
    fleet: Application, visit: Visit, mode: str, state: str
) -> None:
    act(visit(f"/rollouts/{RUNNING}").page, "Abort", "no longer wanted", mode=mode)
    assert rollout(fleet, RUNNING).state == state


def test_a_retry_of_the_failed_leads_to_the_new_draft(fleet: Application, visit: Visit) -> None:
    with fleet.scope("dana") as scope:
        rollouts.abort(scope, HALTED, reason="fixed elsewhere")
    page = visit(f"/rollouts/{HALTED}").page
    act(page, "Retry the failed", "the boards are replaced")
    expect(page).to_have_url(re.compile(f"/rollouts/{re.escape(HALTED)}-retry-1$"))
    made = rollout(fleet, f"{HALTED}-retry-1")
    assert (made.state, made.retries) == ("DRAFT", HALTED)


def test_a_decision_on_what_has_changed_since_is_refused_and_explained(
    fleet: Application, visit: Visit
) -> None:
    page = visit(f"/rollouts/{RUNNING}").page
    page.locator("#live").get_by_role("button", name="Skip to next wave").click()
    with fleet.scope("dana") as scope:
        before = rollouts.promote(scope, RUNNING, reason="quicker")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("me too")
    with page.expect_navigation():
        dialog.get_by_role("button", name="Skip to next wave").click()
    expect(page.get_by_role("heading", name="Not done")).to_be_visible()
    expect(page.locator("main")).to_contain_text("read it again")
    assert rollout(fleet, RUNNING).wave == before.wave
    page.get_by_role("link", name="Back").click()
    expect(page.locator("h1")).to_contain_text("1.1.1")


def post(server: LiveServer, fleet: Application, path: str, **form: Any) -> httpx.Response:
    cookie = {"flotilla_session": token_of(fleet)}
    headers = form.pop("headers", {})
    return httpx.post(f"{server.url}{path}", data=form, cookies=cookie, headers=headers)


def test_a_form_from_another_site_changes_nothing(fleet: Application, server: LiveServer) -> None:
    revision = str(rollout(fleet, RUNNING).revision)
    answer = post(
        server,
        fleet,
        f"/rollouts/{RUNNING}/pause",
        reason="evil",
        revision=revision,
        headers={"Origin": "https://evil.example"},
    )
    assert answer.status_code == 403
    assert rollout(fleet, RUNNING).state == "RUNNING"


@pytest.mark.parametrize(
    ("path", "form", "refusal"),
    [
        (f"{RUNNING}/explode", {"reason": "x", "revision": "1"}, (404, "no verb")),
        (f"{RUNNING}/tick", {"reason": "x", "revision": "1"}, (404, "no verb")),
        ("none/pause", {"reason": "x", "revision": "1"}, (404, "no rollout")),
        (f"{RUNNING}/pause", {"revision": "1"}, (422, "give a reason")),
        (f"{RUNNING}/pause", {"reason": "x"}, (422, "revision")),
        (f"{RUNNING}/pause", {"reason": "x", "revision": "999"}, (409, "read it again")),
        (f"{RUNNING}/start", {"reason": "x", "revision": "REVISION"}, (409, "legal is")),
        (f"{RUNNING}/abort", {"reason": "x", "revision": "1", "mode": "burn"}, (422, "choose one")),
        ("%3Cscript%3E/pause", {"reason": "x", "revision": "1"}, (404, "&lt;script&gt;")),
    ],
)
def test_what_cannot_be_done_is_said_inside_the_layout(
    fleet: Application,
    server: LiveServer,
    path: str,
    form: dict[str, str],
    refusal: tuple[int, str],
) -> None:
    status, said = refusal
    now = str(rollout(fleet, RUNNING).revision)
    sent = {key: now if value == "REVISION" else value for key, value in form.items()}
    answer = post(server, fleet, f"/rollouts/{path}", **sent)
    assert answer.status_code == status
    assert said in answer.text
    assert 'aria-label="Main"' in answer.text
    assert "<script>" not in answer.text
    assert rollout(fleet, RUNNING).state == "RUNNING"


# --- sessions ---------------------------------------------------------------------------------


def test_a_stranger_is_sent_to_the_login_page_and_from_there_to_where_they_wanted(
    fleet: Application, server: LiveServer, contexts: Contexts
) -> None:
    page = contexts().new_page()
    page.goto(f"{server.url}/devices?filter=online")
    expect(page.get_by_label("API token")).to_be_focused()
    page.get_by_label("API token").fill("fla_wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("API token").fill(token_of(fleet))
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{server.url}/devices?filter=online")


def test_a_login_link_opens_a_session_and_logging_out_ends_it(
    fleet: Application, server: LiveServer, contexts: Contexts
) -> None:
    page = contexts().new_page()
    page.goto(f"{server.url}/login?token={token_of(fleet)}&next=/rollouts")
    expect(page).to_have_url(f"{server.url}/rollouts")
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(f"{server.url}/login")
    page.goto(f"{server.url}/rollouts")
    expect(page.get_by_label("API token")).to_be_visible()


def test_a_login_link_with_a_wrong_token_opens_no_session(
    server: LiveServer, contexts: Contexts
) -> None:
    page = contexts().new_page()
    page.goto(f"{server.url}/login?token=fla_wrong")
    assert page.context.cookies() == []
    expect(page.get_by_label("API token")).to_be_visible()


def test_a_session_that_ends_while_a_page_is_open_leads_back_to_the_login_page(
    server: LiveServer, visit: Visit
) -> None:
    page = visit("/devices").page
    expect(page.locator(".live")).to_have_text("Live")
    page.context.clear_cookies()
    server.stop()
    server.start()
    expect(page.get_by_label("API token")).to_be_visible(timeout=30_000)


# --- keys and theme ---------------------------------------------------------------------------


def test_a_slash_goes_to_the_filter_and_is_not_typed_into_it(look: Visit) -> None:
    page = look("/devices").page
    page.keyboard.press("/")
    expect(page.locator("#filter")).to_be_focused()
    expect(page.locator("#filter")).to_have_value("")
    page.keyboard.type("t/p")
    expect(page.locator("#filter")).to_have_value("t/p")


def test_p_opens_the_dialog_to_pause_and_escape_closes_it(look: Visit) -> None:
    page = look(f"/rollouts/{RUNNING}").page
    page.keyboard.press("p")
    dialog = page.get_by_role("dialog", name="Pause")
    expect(dialog.get_by_label("Reason")).to_be_focused()
    expect(dialog.get_by_label("Reason")).to_have_value("")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_chosen_and_is_remembered(
    look: Visit, scheme: str
) -> None:
    page = look("/devices", color_scheme=scheme).page
    colour = "() => getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    assert (before == "rgb(11, 13, 18)") == (scheme == "dark")
    page.keyboard.press("t")
    chosen = page.evaluate(colour)
    assert chosen != before
    page.reload()
    assert page.evaluate(colour) == chosen
