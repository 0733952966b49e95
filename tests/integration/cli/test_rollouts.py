from pathlib import Path

import pytest
import yaml

from control_plane.bootstrap import Application
from control_plane.cli.rollout import OUTCOMES
from control_plane.domain.rollout import RolloutState
from tests.integration.api.support import ROLLOUT, add_fleet, api_token, client_of, set_state
from tests.integration.cli.support import Flotilla

NAME = "slm-1.1.0"


@pytest.fixture
def document(sqlite_app: Application, flotilla: Flotilla, tmp_path: Path) -> str:
    """A rollout's file, for a fleet of three that could get it."""
    with client_of(sqlite_app, api_token(sqlite_app, "fleet")) as client:
        add_fleet(sqlite_app, client)
    path = tmp_path / "rollout.yaml"
    path.write_text(yaml.safe_dump(ROLLOUT))
    return str(path)


@pytest.fixture
def applied(flotilla: Flotilla, document: str) -> Flotilla:
    flotilla.ok("apply", "-f", document)
    return flotilla


def test_plan_says_who_comes_when_and_stores_nothing(flotilla: Flotilla, document: str) -> None:
    said = flotilla.run("plan", "-f", document)
    assert said.exit_code == 0
    assert said.stdout.startswith("Rollout slm-1.1.0: slm 1.1.0 to 3 devices")
    assert "canary" in said.stdout
    assert "no build yet" in said.stderr
    assert flotilla.json("plan", "-f", document)["total"] == 3
    assert flotilla.json("get", "rollouts") == []


def test_apply_with_start_begins_at_once(flotilla: Flotilla, document: str) -> None:
    said = flotilla.ok("apply", "-f", document, "--start")
    assert said.splitlines() == [f"Rollout {NAME}: created", f"Rollout {NAME}: BUILDING"]


def test_a_rollout_that_get_prints_can_be_applied_again(applied: Flotilla) -> None:
    printed = applied.ok("get", "rollout", NAME, "-o", "yaml")
    assert applied.ok("apply", "-f", "-", stdin=printed) == f"Rollout {NAME}: unchanged\n"
    assert applied.ok("diff", "-f", "-", stdin=printed) == ""


def test_a_rollout_of_a_version_that_is_not_there_exits_with_5(
    flotilla: Flotilla, document: str
) -> None:
    text = Path(document).read_text().replace("version: 1.1.0", "version: 9.9.9")
    result = flotilla.run("apply", "-f", "-", stdin=text)
    assert (result.exit_code, "9.9.9" in result.stderr) == (5, True)


def test_a_selector_that_matches_nothing_exits_with_2(flotilla: Flotilla, document: str) -> None:
    text = Path(document).read_text() + '  selector: labels.site = "nowhere"\n'
    result = flotilla.run("apply", "-f", "-", stdin=text)
    assert (result.exit_code, "nowhere" in result.stderr) == (2, True)


def test_a_verb_that_is_not_legal_now_exits_with_6(applied: Flotilla) -> None:
    result = applied.run("rollout", "resume", NAME)
    assert (result.exit_code, "DRAFT" in result.stderr) == (6, True)


def test_verbs_say_the_state_they_led_to(applied: Flotilla) -> None:
    assert applied.ok("rollout", "start", NAME, "--reason", "go") == f"{NAME}: BUILDING\n"
    said = applied.ok("rollout", "abort", NAME, "--mode", "keep", "--reason", "no")
    assert said == f"{NAME}: ABORTED\n"
    reasons = {entry["reason"] for entry in applied.json("audit", "list")}
    assert {"go", "no"} <= reasons


EXIT_CODES = {
    "SUCCEEDED": 0,
    "HALTED": 1,
    "ABORTED": 1,
    "REVERTED": 1,
    "DRAFT": 3,
    "PAUSED": 3,
    "AWAITING_APPROVAL": 3,
}


@pytest.mark.parametrize("command", ["wait", "status", "watch"])
def test_the_exit_code_tells_how_it_ended(
    applied: Flotilla, sqlite_app: Application, command: str
) -> None:
    for state, code in EXIT_CODES.items():
        set_state(sqlite_app, NAME, state)
        result = applied.run("rollout", command, NAME)
        assert (result.exit_code, state in result.stdout) == (code, True), (state, result.output)


def test_a_rollout_that_goes_on_is_waited_for_until_time_is_up(
    applied: Flotilla, sqlite_app: Application
) -> None:
    for state in sorted({one.value for one in RolloutState} - set(EXIT_CODES)):
        set_state(sqlite_app, NAME, state)
        result = applied.run("rollout", "wait", NAME, "--timeout", "1ms")
        assert (result.exit_code, state in result.stderr) == (124, True)
        assert applied.run("rollout", "status", NAME).exit_code == 0


def test_every_state_is_either_an_outcome_or_goes_on() -> None:
    assert set(OUTCOMES) <= {one.value for one in RolloutState}


def test_explain_says_it_in_words_and_as_data(applied: Flotilla) -> None:
    assert applied.ok("rollout", "explain", NAME).startswith(f"{NAME}: DRAFT")
    assert applied.json("rollout", "explain", NAME)["explanation"]["name"] == NAME
