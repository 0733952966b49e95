"""The whole job on real parts: real processes, real broker, real agents, the shipped model."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
STORY_S = 600


def processes_that_mention(text: str) -> list[str]:
    """Command lines of the processes of this machine that contain `text`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if text in line and int(entry.name) != os.getpid():
            found.append(line)
    return found


def test_the_demo_tells_the_whole_story_and_leaves_nothing_behind(tmp_path: Path) -> None:
    facts_file = tmp_path / "facts.json"
    story = subprocess.run(
        [sys.executable, "-m", "control_plane.cli.main", "demo", "--once", "--json", facts_file],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=STORY_S,
        check=False,
    )
    assert story.returncode == 0, story.stderr[-6000:]
    facts = json.loads(facts_file.read_text())
    assert {device["active_version"] for device in facts["devices"]} == {"1.1.0"}
    assert len(facts["devices"]) == 12
    states = {entry["version"]: entry["state"] for entry in facts["rollouts"]}
    assert states == {
        "1.0.0": "SUCCEEDED",
        "1.1.0": "SUCCEEDED",
        "1.2.0": "HALTED",
        "1.3.0": "HALTED",
    }
    slower = [
        row
        for row in facts["benchmarks"]
        if row["candidate"] == "1.2.0" and row["metric"] == "token_ms"
    ]
    # How far the bound lies from the ratio depends on how busy this machine is; what may never
    # happen is that a device lets it pass, or calls it a regression without having proven one.
    assert {row["verdict"] for row in slower} - {"inconclusive"} == {"regression"}
    proven = [row for row in slower if row["verdict"] == "regression"]
    assert all(row["ratio"] > 1.15 and row["ci_low"] > 1 for row in proven)
    assert processes_that_mention(str(tmp_path)) == []
    assert list(tmp_path.glob("flotilla-demo-*")) == []


def test_the_embedded_broker_carries_the_demo_too_and_ctrl_c_ends_it_cleanly(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "control_plane.cli.main", "demo"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path), "FLOTILLA_BROKER": "amqtt"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as story:
        assert story.stderr is not None
        told: list[str] = []
        try:
            read_until(story.stderr, "SUCCEEDED", told)
            story.send_signal(signal.SIGINT)
            told += story.stderr.readlines()
        finally:
            if story.poll() is None:
                os.killpg(story.pid, signal.SIGKILL)
    assert any("stopped" in line for line in told), told[-20:]
    assert processes_that_mention(str(tmp_path)) == []
    assert list(tmp_path.glob("flotilla-demo-*")) == []


def read_until(lines: IO[str], text: str, told: list[str]) -> None:
    """Read lines into `told` until one holds `text`; fail when the writer ends without."""
    for line in lines:
        told.append(line)
        if text in line:
            return
    raise AssertionError(f"{text!r} was never said:\n{''.join(told)[-4000:]}")
