"""A simulated fleet on a real control plane: what it says it did is what is counted there."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.cli.client import Client
from control_plane.local.supervisor import LocalStack
from tests.integration.fleet_simulator.conftest import Simulated
from tests.support.fleet_record import Record

pytestmark = pytest.mark.integration

DEVICES = 30
FIRST = 24
STORM = 50
WAIT_S = 60.0
POLL_S = 0.2
ROUGH: dict[str, Any] = {
    "runs": "support-slm@1.0.0",
    "blueprints": {"x86-64-vnni": {}, "arm64-board": {"share": 2, "speed": 4}},
    "sites": {"vie": 1, "fra": 1},
    "link": {
        "latency": {"median": "20ms", "spread": 2},
        "seconds_per_mb": 0.02,
        "duplicates": 0.3,
        "reordered": 0.2,
    },
    "trial": {"seconds": "300ms"},
    "versions": {
        "1.1.0": {
            "failures": {
                "downloading": {"failed": 0.1},
                "benchmarking": {"rolled_back": 0.1},
                "soaking": {"rolled_back": 0.1},
            }
        }
    },
    "heartbeat": "2s",
    "resend": "2s",
    "connects_per_second": 100,
}


def profile(folder: Path, name: str, **spec: Any) -> Path:
    path = folder / f"{name}.yaml"
    document = {
        "apiVersion": "flotilla/v1",
        "kind": "FleetProfile",
        "metadata": {"name": name},
        "spec": {**ROUGH, "labels": {"fleet": {name: 1}}, **spec},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def start(api: Client, name: str, version: str, *, asks: bool = False) -> None:
    """Start a rollout; one that asks waits for a person before its last wave."""
    last = {"name": "all", "percent": 100} | ({"approval": "required"} if asks else {})
    spec = {
        "model": "support-slm",
        "version": version,
        "selector": f'labels.fleet = "{name.partition("-")[0]}"',
        "soak": "200ms",
        "waves": [{"name": "canary", "count": FIRST}, last],
        "gates": {"max_failures": 30},
        "pace": {"max_in_flight": 1000, "per_minute": 100_000},
    }
    document = {
        "apiVersion": "flotilla/v1",
        "kind": "Rollout",
        "metadata": {"name": name},
        "spec": spec,
    }
    api.put(f"/api/v1/rollouts/{name}", document)
    api.post(f"/api/v1/rollouts/{name}:start", {"reason": "a story"})


def until(api: Client, name: str, state: str) -> dict[str, int]:
    """Wait until a rollout is in a state, and return how many executions are in which."""
    give_up = time.monotonic() + WAIT_S
    while True:
        view = api.get(f"/api/v1/rollouts/{name}")
        counts: Counter[str] = Counter()
        for wave in view["waves"]:
            counts.update(wave["counts"])
        if view["state"] == state:
            return {one: n for one, n in counts.items() if n}
        assert time.monotonic() < give_up, f"{name} is {view['state']}: {counts}"
        time.sleep(POLL_S)  # the API has no call that waits


def ends_in(record: Record) -> Counter[str]:
    ends = {"SUCCEEDED", "FAILED", "ROLLED_BACK"}
    return Counter(one["state"] for one in record.since(0, what="event") if one["state"] in ends)


def all_acknowledged(record: Record) -> bool:
    lines = record.read()
    said = [one for one in lines if one["what"] in {"event", "trial"}]
    acked = {(one["device"], one["seq"]) for one in lines if one["what"] == "acked"}
    return len(acked) == len(said)


def test_the_tallies_are_what_the_devices_say_they_did_also_after_a_revert(
    api: Client, fleets: Callable[[], Simulated], tmp_path: Path
) -> None:
    fleet = fleets()
    fleet.start(DEVICES, profile(tmp_path, "rough"))
    fleet.connected(DEVICES)

    start(api, "rough-1", "1.1.0", asks=True)
    counted = until(api, "rough-1", "AWAITING_APPROVAL")
    fleet.record.wait(lambda record: ends_in(record).total() >= FIRST, "all ends are written")
    said = ends_in(fleet.record)
    assert counted == {**said, "QUEUED": DEVICES - FIRST}
    assert {"FAILED", "ROLLED_BACK", "SUCCEEDED"} == said.keys(), "the profile is rough"

    api.post("/api/v1/rollouts/rough-1:revert", {"reason": "to see them go back"})
    until(api, "rough-1", "REVERTED")
    fleet.record.wait(all_acknowledged, "everything is acknowledged")
    summary = fleet.end()
    ends = summary["rollouts"]["rough-1"]
    assert ends["reverted"] == said["SUCCEEDED"]
    assert sum(ends.values()) == FIRST
    assert summary["unacknowledged"] == 0
    assert summary["messages_unread"] == 0


def test_a_fleet_that_is_simulated_again_is_the_same_and_goes_on_where_it_was(
    api: Client, fleets: Callable[[], Simulated], tmp_path: Path
) -> None:
    fleet = fleets()
    again = profile(tmp_path, "again", versions={})
    fleet.start(3, again, "--enroll-only")
    assert fleet.process.wait(WAIT_S) == 0
    fleet.start(5, again)
    fleet.connected(5)
    start(api, "again-1", "1.1.1")
    fleet.record.wait(lambda r: len(r.since(0, says="SUCCEEDED soaked")) >= 5, "all succeeded")
    fleet.end()

    now = time.time()  # noqa: TID251 - the record has the wall clock
    fleet.start(5, again)
    fleet.connected(5, since=now)
    names = {line["device"] for line in fleet.record.since(now, what="up")}
    assert names == {f"again-{n:05}" for n in range(1, 6)}
    fleet.end()
    assert not fleet.record.since(now, what="event"), "it knows what it has applied"


def test_a_storm_after_the_death_of_the_broker_is_spread_and_everyone_comes_back(
    stack: LocalStack, fleets: Callable[[], Simulated], tmp_path: Path
) -> None:
    fleet = fleets()
    spread = {"base": "3s", "cap": "6s"}
    fleet.start(STORM, profile(tmp_path, "storm", reconnect=spread))
    fleet.connected(STORM)

    now = time.time()  # noqa: TID251 - the record has the wall clock
    os.kill(stack.pids["broker"], signal.SIGKILL)  # the supervisor starts it again
    fleet.connected(STORM, since=now)

    back = sorted(one["at"] for one in _firsts(fleet.record, now))
    tenths = Counter(int(10 * at) for at in back)
    assert max(tenths.values()) < STORM / 2, "no herd"
    summary = fleet.end()
    assert summary["connects"] == 2 * STORM
    assert summary["lost_connections"] == STORM


def _firsts(record: Record, since: float) -> list[dict[str, Any]]:
    return list({one["device"]: one for one in record.since(since, what="up")}.values())
