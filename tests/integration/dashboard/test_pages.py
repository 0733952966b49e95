"""Every page in a real browser: what it says, and what it must never do."""

import re
from urllib.parse import quote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.integration.dashboard.conftest import Visit
from tests.support import seed_fleet

HALTED = f"/rollouts/{seed_fleet.HALTED}"
PAGES = ["/", "/devices", "/devices/edge-vie-006", "/rollouts", HALTED, "/artifacts"]
MORE = [f"/rollouts/{name}" for name in (seed_fleet.RUNNING, seed_fleet.AWAITING)]
STRICT = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa"]}}


@pytest.mark.parametrize("path", PAGES + MORE)
def test_a_page_has_no_errors_and_asks_nobody_else(look: Visit, path: str) -> None:
    seen = look(path)
    expect(seen.page.locator(".live")).to_have_text("Live")
    assert seen.errors == []
    assert {urlsplit(url).hostname for url in seen.requests} == {"127.0.0.1"}


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_within_six_requests_and_fifty_kilobytes(look: Visit, path: str) -> None:
    seen = look(path)
    expect(seen.page.locator(".live")).to_have_text("Live")
    sizes = seen.compressed_bytes()
    assert len(seen.requests) <= 6, seen.requests
    assert sum(sizes.values()) <= 50_000, sizes


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", [*PAGES, "/login", "/rollouts/none"])
def test_a_page_breaks_no_rule_of_accessibility(look: Visit, path: str, scheme: str) -> None:
    seen = look(path, color_scheme=scheme)
    found = Axe().run(seen.page, options=STRICT)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("path", [*PAGES, *MORE, "/login", "/devices?filter=no"])
def test_a_page_fits_a_phone(look: Visit, path: str) -> None:
    seen = look(path, viewport={"width": 390, "height": 844})
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_fleet_table_says_version_and_health_of_each_device(look: Visit) -> None:
    page = look("/devices").page
    rows = page.locator("tbody tr")
    assert rows.count() == 50
    ill = page.locator("#d-edge-vie-004")
    expect(ill).to_contain_text("unhealthy")
    expect(ill).to_contain_text("support-slm 1.2.0")
    expect(page.locator("#d-edge-dub-003")).to_contain_text("offline")
    expect(page.locator("#d-edge-fra-009")).to_contain_text("1.1.0")


@pytest.mark.parametrize("script", [True, False])
def test_filter_and_paging_work_with_and_without_javascript(look: Visit, script: bool) -> None:  # noqa: FBT001 - a parameter of the test
    page = look("/devices", java_script_enabled=script).page
    page.get_by_role("link", name="Next").click()
    expect(page.locator("tbody tr")).to_have_count(10)
    expect(page.locator("tbody tr").first).to_contain_text("edge-waw-001")
    page.get_by_role("link", name="First").click()
    expect(page.locator("tbody tr")).to_have_count(50)
    page.locator("#filter").fill('version = "1.2.0" and labels.site = "vie"')
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("tbody tr")).not_to_have_count(50)
    versions = page.locator("tbody td:nth-child(3) strong").all_text_contents()
    assert versions
    assert set(versions) == {"1.2.0"}
    expect(page.locator("#filter")).to_have_value('version = "1.2.0" and labels.site = "vie"')


@pytest.mark.parametrize(
    ("path", "word"),
    [("/devices", "colour"), ("/rollouts", "colour"), (HALTED, "colour")],
)
def test_a_filter_that_cannot_be_read_is_explained_and_can_be_mended(
    look: Visit, path: str, word: str
) -> None:
    asked = f'{word} = "<b>red</b>"'
    seen = look(f"{path}?filter={quote(asked)}")
    assert seen.answer is not None
    assert seen.answer.status == 422
    expect(seen.page.get_by_role("heading", name="This filter cannot be read")).to_be_visible()
    expect(seen.page.locator("main")).to_contain_text(word)
    expect(seen.page.locator("#filter")).to_have_value(asked)
    assert seen.page.locator("main b").count() == 0


def test_a_cursor_that_is_none_is_refused_inside_the_layout(look: Visit) -> None:
    seen = look("/rollouts?cursor=nonsense")
    assert seen.answer is not None
    assert seen.answer.status == 422
    expect(seen.page.get_by_role("navigation")).to_be_visible()


@pytest.mark.parametrize(
    ("path", "kind"), [("/rollouts/none", "rollout"), ("/devices/none", "device")]
)
def test_what_does_not_exist_is_said_inside_the_layout(look: Visit, path: str, kind: str) -> None:
    seen = look(path)
    assert seen.answer is not None
    assert seen.answer.status == 404
    expect(seen.page.get_by_role("heading", name=f"There is no such {kind}")).to_be_visible()
    expect(seen.page.get_by_role("navigation")).to_be_visible()


def test_a_halted_rollout_shows_its_waves_and_why_it_stopped(look: Visit) -> None:
    page = look(HALTED).page
    expect(page.locator("h1")).to_have_text("support-slm 1.1.0 → 1.2.0")
    expect(page.locator(".notice")).to_contain_text("arm64-board: 4 failures")
    assert page.locator(".wave .name > span:nth-child(2)").all_text_contents() == [
        "canary",
        "half",
        "everyone",
    ]
    expect(page.locator(".wave").first).to_contain_text("8 of 12 updated · 4 lost")
    expect(page.locator(".figures")).to_contain_text("12 of 30 devices decided")


def test_gates_say_rule_limit_value_interval_and_number_per_blueprint(look: Visit) -> None:
    page = look(HALTED).page
    table = page.locator("table.gates")
    assert table.locator("thead th").all_text_contents() == [
        "Gate",
        "arm64-board",
        "x86-64-avx2",
        "x86-64-vnni",
    ]
    failures = table.locator("tr", has_text="Failures")
    expect(failures).to_contain_text("at most 0")
    expect(failures.locator("td").first).to_contain_text("breached")
    expect(failures.locator("td").first).to_contain_text("4")
    speed = table.locator("tr", has_text="Time per token")
    expect(speed).to_contain_text("at most +10.0 %")
    shape = re.compile(r"[+-]\d+\.\d %\s*[+-]\d+\.\d to [+-]\d+\.\d %, n 4")
    expect(speed.locator("td").first).to_have_text(re.compile("breached.*" + shape.pattern))
    expect(speed.locator("td").last).to_contain_text("pass")


def test_changes_are_drawn_per_blueprint_on_one_scale_with_gate_and_median(look: Visit) -> None:
    page = look(HALTED).page
    charts = page.locator("svg.chart")
    expect(charts).to_have_count(3)
    assert charts.first.locator("g circle").count() == 4
    assert charts.first.locator("g.fail").count() == 4
    gates = {chart.locator("line.gate").get_attribute("x1") for chart in charts.all()}
    assert len(gates) == 1
    expect(charts.last.locator("text.median")).to_contain_text("median")


def test_decisions_are_listed_with_reason_and_actor(look: Visit) -> None:
    page = look(HALTED).page
    lines = page.locator("ol.decisions li")
    halt = lines.filter(has_text="halt")
    expect(halt).to_contain_text("at most 0 allowed")
    expect(halt).to_contain_text("scheduler")
    expect(lines.last).to_contain_text("longer answers")
    expect(lines.last).to_contain_text("dana@ops")


def test_the_devices_of_a_rollout_can_be_listed_by_what_became_of_them(look: Visit) -> None:
    page = look(HALTED).page
    page.get_by_role("link", name="Rolled back").click()
    expect(page.locator("tr[id^=x-]")).to_have_count(4)
    expect(page.locator("tr[id^=x-]").first).to_contain_text("trial: regression")


def test_a_device_shows_what_it_runs_what_it_measured_and_what_happened(look: Visit) -> None:
    page = look("/devices/edge-vie-006").page
    expect(page.locator("main")).to_contain_text("arm64-board")
    expect(page.get_by_role("region", name="Trials")).to_contain_text("regression")
    expect(page.get_by_role("region", name="History")).to_contain_text("1.1.0")


def test_artifacts_show_accepted_and_refused_recipes_with_numbers(look: Visit) -> None:
    page = look("/artifacts").page
    expect(page.locator("tbody tr", has_text="refused").first).to_contain_text("1.038")
    expect(page.locator("tbody tr", has_text="accepted").first).to_contain_text("MB")


def test_the_overview_puts_first_what_waits_for_a_person(look: Visit) -> None:
    page = look("/").page
    expect(page.locator(".notice")).to_contain_text(seed_fleet.HALTED)
    expect(page.locator(".notice")).to_contain_text(seed_fleet.AWAITING)
    expect(page.locator(".figures")).to_contain_text("60")


def test_pages_hold_neither_inline_style_nor_inline_script(look: Visit) -> None:
    for path in PAGES:
        seen = look(path)
        assert seen.answer is not None
        text = seen.answer.text()
        assert not re.search(r"\sstyle=|<style|\son[a-z]+=", text), path
        assert not re.search(r"<script(?![^>]*\ssrc=)", text), path


def test_the_strict_policy_is_sent_with_pages_and_streams(look: Visit) -> None:
    seen = look("/devices")
    assert seen.answer is not None
    policy = seen.answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
