"""The verbs beside those of the machine, as commands."""

from pathlib import Path

import pytest
import yaml

from control_plane.bootstrap import Application
from tests.integration.api.support import ROLLOUT, add_fleet, api_token, client_of
from tests.integration.cli.support import Flotilla

NAME = "slm-1.1.0"


@pytest.fixture
def started(sqlite_app: Application, flotilla: Flotilla, tmp_path: Path) -> Flotilla:
    """A rollout that has begun, over a fleet of three."""
    with client_of(sqlite_app, api_token(sqlite_app, "fleet")) as client:
        add_fleet(sqlite_app, client)
    path = tmp_path / "rollout.yaml"
    path.write_text(yaml.safe_dump(ROLLOUT))
    flotilla.ok("apply", "-f", str(path), "--start")
    return flotilla


def test_a_denial_without_a_reason_is_a_wrong_use(started: Flotilla) -> None:
    assert started.run("rollout", "deny", NAME).exit_code == 2
    result = started.run("rollout", "deny", NAME, "--reason", "no")
    assert (result.exit_code, "BUILDING" in result.stderr) == (6, True)


def test_a_retry_says_why_not(started: Flotilla) -> None:
    result = started.run("rollout", "retry", NAME)
    assert (result.exit_code, "legal is pause, abort, revert" in result.stderr) == (6, True)
    started.ok("rollout", "abort", NAME)
    result = started.run("rollout", "retry", NAME, "--name", "again", "--include-rejected")
    assert (result.exit_code, "nothing to retry" in result.stderr) == (6, True)


def test_an_invalidation_says_what_it_did(started: Flotilla) -> None:
    assert started.run("model", "invalidate", "slm", "1.1.0").exit_code == 2
    said = started.run("model", "invalidate", "slm", "1.1.0", "--reason", "it leaks", "--revert")
    assert (said.exit_code, said.stdout) == (0, "slm 1.1.0: invalid\n")
    assert f"rollout {NAME}: REVERTING" in said.stderr
    assert "0 devices run it" in said.stderr
    assert "it leaks" in started.ok("model", "versions", "slm")
    again = started.run("rollout", "start", NAME)
    assert (again.exit_code, "it leaks" in again.stderr) == (6, True)


def test_a_simulation_is_printed_beside_the_record(started: Flotilla, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("gates: {max_failures: 3}\npace: {max_in_flight: 1}\n")
    ask = ("rollout", "simulate", NAME, "-f", str(policy))
    said = started.run(*ask, "--unknown", "fail", "--seed", "7")
    assert said.exit_code == 0, said.output
    assert "RECORDED" in said.stdout
    assert "3 of 3 devices have no answer in the record" in said.stderr
    assert started.json(*ask, "--unknown", "succeed")["replayed"]["state"] == "SUCCEEDED"
    assert started.run(*ask).exit_code == 2, "no rate without an answer"
    assert started.run(*ask, "--unknown", "maybe").exit_code == 2
    policy.write_text("- waves")
    wrong = started.run(*ask)
    assert (wrong.exit_code, "a mapping" in wrong.stderr) == (2, True)
