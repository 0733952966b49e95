"""Pages that follow the database by themselves, and lose nothing that a person is doing."""

import httpx
import pytest
from playwright.sync_api import Page, expect

from control_plane.bootstrap import Application
from control_plane.services import rollouts
from control_plane.store.schema import device
from tests.integration.dashboard.conftest import Visit, token_of
from tests.support import seed_fleet
from tests.support.browser import LiveServer

SOON_MS = 5_000  # two seconds, and as much again for a machine that does other things
RUNNING = f"/rollouts/{seed_fleet.RUNNING}"


def mark(page: Page) -> None:
    """Put something on the page that a reload would lose."""
    expect(page.locator(".live")).to_have_text("Live")
    page.evaluate("() => { document.body.dataset.marked = 'yes'; }")


def still_marked(page: Page) -> bool:
    return page.locator("body[data-marked=yes]").count() == 1


def set_health(fleet: Application, name: str, *, healthy: bool) -> None:
    with fleet.scope("test") as scope:
        scope.tx.execute(device.update().where(device.c.id == name).values(healthy=healthy))


def test_a_change_appears_without_a_reload_and_the_filter_box_keeps_its_focus(
    fleet: Application, visit: Visit
) -> None:
    page = visit("/devices").page
    mark(page)
    page.locator("#filter").press_sequentially("version = ")
    set_health(fleet, "edge-dub-001", healthy=False)
    expect(page.locator("#d-edge-dub-001")).to_contain_text("unhealthy", timeout=SOON_MS)
    expect(page.locator("#filter")).to_be_focused()
    expect(page.locator("#filter")).to_have_value("version = ")
    assert still_marked(page)


def test_a_rollout_page_follows_what_others_do_and_offers_the_new_verbs(
    fleet: Application, visit: Visit
) -> None:
    page = visit(RUNNING).page
    mark(page)
    with fleet.scope("dana") as scope:
        rollouts.pause(scope, seed_fleet.RUNNING, reason="a talk at the site")
    expect(page.locator(".figures")).to_contain_text("paused by a person", timeout=SOON_MS)
    expect(page.locator("ol.decisions")).to_contain_text("a talk at the site")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert still_marked(page)


def test_an_open_dialog_survives_an_update(fleet: Application, visit: Visit) -> None:
    page = visit(RUNNING).page
    mark(page)
    page.get_by_role("button", name="Abort").click()
    page.get_by_role("dialog").get_by_label("Reason").press_sequentially("wrong ")
    with fleet.scope("dana") as scope:
        rollouts.pause(scope, seed_fleet.RUNNING, reason="first")
    expect(page.locator(".figures")).to_contain_text("paused by a person", timeout=SOON_MS)
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.get_by_role("dialog").get_by_label("Reason")).to_be_focused()
    page.keyboard.type("version")
    expect(page.get_by_role("dialog").get_by_label("Reason")).to_have_value("wrong version")


def test_a_restarted_server_is_found_again_and_the_filter_stays(
    fleet: Application, server: LiveServer, visit: Visit
) -> None:
    page = visit("/devices?filter=healthy%20%3D%20true").page
    mark(page)
    page.locator("#filter").fill("healthy = true and online = true")
    server.stop()
    expect(page.locator(".live")).to_have_text("Reconnecting", timeout=20_000)
    server.start()
    set_health(fleet, "edge-dub-001", healthy=False)
    expect(page.locator("#d-edge-dub-001")).to_have_count(0, timeout=30_000)
    expect(page.locator(".live")).to_have_text("Live")
    expect(page.locator("#filter")).to_have_value("healthy = true and online = true")
    assert page.url.endswith("filter=healthy%20%3D%20true")
    assert still_marked(page)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/live/rollouts/none", 404), ("/live/devices/none", 404), ("/live/devices?filter=no", 422)],
)
def test_a_stream_of_what_cannot_be_shown_is_refused_before_it_begins(
    shared_fleet: Application,
    shared_server: LiveServer,
    path: str,
    status: int,
) -> None:
    bearer = {"Authorization": f"Bearer {token_of(shared_fleet)}"}
    answer = httpx.get(f"{shared_server.url}{path}", headers=bearer)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/plain")


def test_a_stream_without_a_session_is_refused_and_not_sent_to_the_login_page(
    shared_server: LiveServer,
) -> None:
    accept = {"Accept": "text/html, text/event-stream"}
    answer = httpx.get(f"{shared_server.url}/live/devices", headers=accept)
    assert answer.status_code == 401
