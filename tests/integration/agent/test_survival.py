"""Kills, outages and starts of a real agent process."""

import json
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.protocol.messages import BackOff, Command, Heartbeat, Hello, Presence, State
from agent.protocol.words import ExecutionState, Reason
from tests.integration.agent.conftest import REPOSITORY, Agent
from tests.support.control_plane_simulator import Simulator, now

pytestmark = pytest.mark.integration
S = ExecutionState
RSS_GOAL_KIB = 30 * 1024
# Runs the command in this very process and tells what it had imported when it ended.
WITH_MODULES = """
import sys
from agent.__main__ import main
status = main()
print("MODULES", *sorted(sys.modules), flush=True)
sys.exit(status)
"""


@pytest.mark.parametrize(
    "state", ["Verifying", "Downloading", "Staged", "Benchmarking", "Activating", "Soaking"]
)
def test_an_agent_killed_in_a_state_finishes_after_a_restart(
    plane: Simulator, device: Agent, tmp_path: Path, state: str
) -> None:
    go_on = tmp_path / "go-on"
    waits: dict[str, Any] = {
        "Benchmarking": {"trial_waits_for": str(go_on)},
        "Soaking": {"probe_waits_for": str(go_on)},
    }.get(state, {})
    first = plane.bundle("1.0.0", 1)
    device.start()
    plane.order(device.name, first)
    plane.wait_event(S.SUCCEEDED)
    gate = threading.Event()
    if state == "Verifying":
        plane.faults.hold_manifest = gate
    if state == "Downloading":
        plane.faults.hold = gate
    second = plane.bundle("1.1.0", 2, **waits)
    plane.order(device.name, second)
    device.wait_line(f"state.entered state={state}", after=len(device.lines))
    device.kill()
    assert (device.data / "active" / "model.onnx").read_bytes(), "no model is active"
    gate.set()
    go_on.touch()
    device.start()
    assert plane.wait_event(S.SUCCEEDED).digest == second.digest
    assert device.status()["active"] == second.digest


def test_an_agent_killed_while_it_turns_back_ends_on_last_known_good(
    plane: Simulator, device: Agent
) -> None:
    first = plane.bundle("1.0.0", 1)
    device.start()
    plane.order(device.name, first)
    plane.wait_event(S.SUCCEEDED)
    plane.order(device.name, plane.bundle("1.1.0", 2, probe="unhealthy"))
    device.wait_line("state.entered state=Reverting")
    device.kill()
    device.start()
    assert plane.wait_event(S.ROLLED_BACK).digest == first.digest
    assert device.status()["active"] == first.digest


def test_a_model_that_takes_the_agent_down_in_every_soak_is_taken_back(
    plane: Simulator, device: Agent, tmp_path: Path
) -> None:
    first = plane.bundle("1.0.0", 1)
    device.start()
    plane.order(device.name, first)
    plane.wait_event(S.SUCCEEDED)
    never = str(tmp_path / "never")
    plane.order(device.name, plane.bundle("1.1.0", 2, probe_waits_for=never), max_tries=2)
    device.wait_line("state.entered state=Soaking", after=len(device.lines))
    for _ in range(2):
        device.kill()
        device.lines.clear()
        device.start()
        device.wait_line("agent.started")
    back = plane.wait_event(S.ROLLED_BACK)
    assert (back.reason, back.digest) == (Reason.CRASH_LOOP, first.digest)
    Path(never).touch()


def test_a_broker_that_is_down_at_start_is_named_and_waited_for(
    plane: Simulator, device: Agent
) -> None:
    plane.broker.service.stop()
    device.start()
    device.wait_line(f"broker.unreachable host=127.0.0.1 port={plane.broker.port}")
    plane.broker.service.start()
    device.wait_line("link.connected")
    assert device.end() == 0


def test_a_broker_that_forgets_everything_costs_only_time(plane: Simulator, device: Agent) -> None:
    plane.faults.acking = False
    bundle = plane.bundle("1.0.0", 1)
    device.start()
    plane.order(device.name, bundle)
    plane.wait_event(S.SUCCEEDED)
    plane.received.clear()
    plane.broker.service.restart(crash=True)
    assert plane.wait_event(S.SUCCEEDED).digest == bundle.digest


def test_reports_are_repeated_until_they_are_acknowledged(plane: Simulator, device: Agent) -> None:
    plane.faults.acking = False
    device.start()
    plane.order(device.name, plane.bundle("1.0.0", 1))
    plane.wait_event(S.SUCCEEDED)
    device.kill()
    assert device.status()["unacknowledged"] == 7  # six transitions and the trial
    plane.received.clear()
    device.start()
    plane.wait_event(S.SUCCEEDED)
    plane.faults.acking = True
    plane.wait(lambda: device.status()["unacknowledged"] == 0)


def test_an_agent_that_is_told_to_stop_says_goodbye(plane: Simulator, device: Agent) -> None:
    device.start()
    online = plane.wait(lambda: next((p for p in plane.all(Presence) if p.online), None))
    started = time.monotonic()
    assert device.end() == 0
    assert time.monotonic() - started < 5
    last = plane.wait(lambda: next((p for p in plane.all(Presence) if not p.online), None))
    assert last.connection == online.connection


def test_the_will_of_a_killed_agent_names_its_connection(plane: Simulator, device: Agent) -> None:
    device.start()
    online = plane.wait(lambda: next((p for p in plane.all(Presence) if p.online), None))
    device.kill()
    will = plane.wait(lambda: next((p for p in plane.all(Presence) if not p.online), None))
    assert will.connection == online.connection
    device.start()
    again = plane.wait(lambda: next((p for p in plane.all(Presence)[2:] if p.online), None))
    assert again.connection > online.connection


def test_every_connection_says_hello_and_a_command_asks_for_one_more(
    plane: Simulator, device: Agent
) -> None:
    device.start()
    first = plane.wait(lambda: next(iter(plane.all(Hello)), None))
    assert (first.blueprint, first.generation, first.hardware.cores > 0) == ("board", 0, True)
    plane.wait(lambda: next(iter(plane.all(Heartbeat)), None))
    plane.command(device.name, Command(id="c1", name="hello", expires=int(now()) + 60))
    plane.wait(lambda: len(plane.all(Hello)) == 2)


def said_hello(plane: Simulator, times: int) -> bool:
    return len(plane.all(Hello)) == times


def test_an_agent_that_is_asked_for_patience_gives_no_sign_of_life_but_answers(
    plane: Simulator, device: Agent
) -> None:
    device.start()
    plane.wait(lambda: next(iter(plane.all(Heartbeat)), None))
    for_a_minute = int(now()) + 60
    plane.command(device.name, BackOff(id="c1", expires=for_a_minute, seconds=60))
    for asked in (2, 3):
        plane.command(device.name, Command(id=f"h{asked}", name="hello", expires=for_a_minute))
        plane.wait(partial(said_hello, plane, asked))
    came = [channel for channel, _ in plane.received]
    second, third = [at for at, channel in enumerate(came) if channel == "hello"][-2:]
    assert came[second:third] == ["hello", "state"]


def test_the_resident_agent_stays_small_and_imports_nothing_heavy(
    plane: Simulator, device: Agent
) -> None:
    device.start(code=WITH_MODULES)
    plane.order(device.name, plane.bundle("1.0.0", 1))
    plane.wait_event(S.SUCCEEDED)
    assert device.process is not None
    status = Path(f"/proc/{device.process.pid}/status")
    if status.exists():
        memory = dict(line.split(":", 1) for line in status.read_text().splitlines())
        assert int(memory["VmRSS"].split()[0]) <= RSS_GOAL_KIB
    assert device.end() == 0
    modules = {
        name.split(".")[0]
        for line in device.lines
        if line.startswith("MODULES")
        for name in line.split()[1:]
    }
    assert "paho" in modules
    assert modules.isdisjoint({"cryptography", "numpy", "onnxruntime", "control_plane"})


def test_two_agents_cannot_share_a_data_folder(plane: Simulator, device: Agent) -> None:
    device.start()
    device.wait_line("agent.started")
    done = device.command("run")
    assert done.returncode == 1
    assert "another agent runs" in done.stderr


def test_a_running_agent_goes_back_when_a_person_asks(plane: Simulator, device: Agent) -> None:
    first = plane.bundle("1.0.0", 1)
    device.start()
    for ref in (first, plane.bundle("1.1.0", 2)):
        plane.order(device.name, ref)
        plane.wait_event(S.SUCCEEDED)
    done = device.command("rollback")
    assert done.returncode == 0, done.stderr
    back = plane.wait_event(S.ROLLED_BACK)
    assert (back.reason, back.digest) == (Reason.OPERATOR, first.digest)


def test_a_stopped_agent_goes_back_when_a_person_asks(plane: Simulator, device: Agent) -> None:
    first = plane.bundle("1.0.0", 1)
    device.start()
    for ref in (first, plane.bundle("1.1.0", 2)):
        plane.order(device.name, ref)
        plane.wait_event(S.SUCCEEDED)
    device.end()
    done = device.command("rollback")
    assert done.returncode == 0, done.stderr
    assert device.status()["active"] == first.digest
    device.start()
    assert plane.wait_event(S.ROLLED_BACK).reason is Reason.OPERATOR


def test_an_active_bundle_that_rots_is_replaced_by_the_one_before(
    plane: Simulator, device: Agent
) -> None:
    first, second = plane.bundle("1.0.0", 1), plane.bundle("1.1.0", 2)
    device.start()
    for ref in (first, second):
        plane.order(device.name, ref)
        plane.wait_event(S.SUCCEEDED)
    device.end()
    rotten = device.data / "bundles" / second.digest / "model.onnx"
    rotten.write_bytes(b"\0" * rotten.stat().st_size)
    life = plane.all(State)[-1].boot
    device.start()
    # The order is still retained: the device repairs itself.
    plane.wait(lambda: [e for e in plane.events() if e.state is S.SUCCEEDED and e.boot > life])
    assert device.status()["active"] == second.digest
    assert rotten.read_bytes().strip(b"\0")


def test_a_lost_journal_is_found_again_in_the_slots(plane: Simulator, device: Agent) -> None:
    first = plane.bundle("1.0.0", 1)
    device.start()
    plane.order(device.name, first)
    plane.wait_event(S.SUCCEEDED)
    device.end()
    for journal in device.data.glob("journal.*"):
        journal.write_bytes(b"garbage")
    plane.received.clear()
    device.start()
    hello = plane.wait(lambda: next(iter(plane.all(Hello)), None))
    assert hello.digest == first.digest
    assert plane.wait_event(S.SUCCEEDED).reason is Reason.ALREADY_RUNNING


# --- the command line -----------------------------------------------------------------------


def test_enrolling_again_changes_nothing(plane: Simulator, device: Agent) -> None:
    before = (device.data / "identity" / "device.key").read_bytes()
    done = device.enroll()
    assert done.returncode == 0
    assert "already" in done.stdout
    assert (device.data / "identity" / "device.key").read_bytes() == before


def test_secrets_are_for_their_owner_only(plane: Simulator, device: Agent) -> None:
    for path in (device.data / "identity").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": "flt1.nonsense"}, "enrolment token: expected"),
        ({"token": f"flt1.{'0' * 64}.abcd1234.{'x' * 24}"}, "CA is not the one"),
        ({"device": "No Such Name"}, "device id"),
        ({"server": "http://fleet.example"}, "plain HTTP"),
        ({"server": "https://127.0.0.1:1"}, "is the server up"),
    ],
)
def test_a_wrong_enrolment_says_what_is_wrong_and_leaves_no_identity(
    plane: Simulator, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    agent = Agent(plane, tmp_path / "new")
    done = agent.enroll(**options)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "new" / "identity" / "identity.json").exists()


def test_a_used_up_token_is_refused_in_the_servers_words(plane: Simulator, tmp_path: Path) -> None:
    token = plane.token.replace("x" * 24, "y" * 24)
    done = Agent(plane, tmp_path / "new").enroll(token=token)
    assert "401 the token is unknown" in done.stderr


def test_doctor_says_what_is_wrong(plane: Simulator, device: Agent) -> None:
    assert device.command("doctor").returncode == 0
    plane.broker.service.stop()
    done = device.command("doctor")
    assert done.returncode == 1
    assert "FAILED  broker" in done.stdout
    assert "ok      server" in done.stdout


def test_a_device_that_is_not_enrolled_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent", "run", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode == 1
    assert "not enrolled" in done.stderr


def test_status_is_json_for_programs_and_a_table_for_people(
    plane: Simulator, device: Agent
) -> None:
    assert json.loads(device.command("status", "-o", "json").stdout)["device"] == "edge-1"
    assert "edge-1" in device.command("status").stdout


def test_an_agent_is_stopped_by_an_interrupt_too(plane: Simulator, device: Agent) -> None:
    device.start()
    device.wait_line("link.connected")
    assert device.end(signal.SIGINT) == 0
