"""What the demo writes: the facts as the API reports them, and whether the story held."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from control_plane.local.demo_client import Client, Json

PRIMARY = "token_ms"


@dataclass(frozen=True)
class Check:
    """One claim of the story, and what was found instead if it does not hold."""

    claim: str
    holds: bool
    found: str


def collect(client: Client) -> Json:
    """Return every fact, from the API alone."""
    return {
        "devices": [_device(client, entry) for entry in client.all("/api/v1/devices")],
        "rollouts": [_rollout(client, entry) for entry in client.all("/api/v1/rollouts")],
        "artifacts": [_artifact(entry) for entry in client.all("/api/v1/artifacts")],
        "benchmarks": [
            row for entry in client.all("/api/v1/benchmarks") for row in _benchmarks(entry)
        ],
    }


def _device(client: Client, entry: Json) -> Json:
    history = client.all(f"/api/v1/devices/{entry['id']}/history")
    return {
        "id": entry["id"],
        "blueprint": entry["blueprint"],
        "active_version": entry["version"],
        "history": [
            {"version": h["version"], "at": h["at"], "why": h["why"]}
            for h in history
            if h["kind"] == "active"
        ],
    }


def _rollout(client: Client, entry: Json) -> Json:
    name = entry["name"]
    executions = list(client.all(f"/api/v1/rollouts/{name}/executions"))
    decisions = client.all(f"/api/v1/rollouts/{name}/decisions")
    return {
        "name": name,
        "model": entry["model"],
        "version": entry["version"],
        "state": entry["state"],
        "exposed_devices": sorted(e["device"] for e in executions if e["offered_at"]),
        "executions": dict(Counter(e["state"] for e in executions)),
        "decisions": [
            {
                "at": d["at"],
                "decision": d["kind"],
                "wave": d["wave"],
                "evidence": d["evidence"],
            }
            for d in decisions
        ],
    }


def _artifact(entry: Json) -> Json:
    wanted = (
        "version",
        "blueprint",
        "recipe",
        "bytes",
        "source_bytes",
        "quality",
        "accepted",
        "why",
    )
    return {key: entry[key] for key in wanted}


def _benchmarks(entry: Json) -> list[Json]:
    return [
        {
            "device": entry["device"],
            "candidate": entry["candidate"],
            "incumbent": entry["incumbent"],
            "metric": metric["name"],
            "ratio": metric["ratio"],
            "ci_low": metric["ci_low"],
            "ci_high": metric["ci_high"],
            "verdict": metric["verdict"],
        }
        for metric in entry["metrics"]
    ]


def checks(facts: Json, *, devices: int, canaries: int) -> list[Check]:
    """Hold the story against the facts."""
    rollouts = {entry["version"]: entry for entry in facts["rollouts"]}
    return [
        *_arrived(rollouts, "1.0.0", devices),
        *_arrived(rollouts, "1.1.0", devices),
        *_stopped(facts, rollouts, "1.2.0", canaries, "regression"),
        *_stopped(facts, rollouts, "1.3.0", canaries, "wrong_output"),
        _everyone_runs(facts, "1.1.0", devices),
    ]


def _arrived(rollouts: dict[str, Json], version: str, devices: int) -> list[Check]:
    entry = rollouts.get(version, {})
    reached = entry.get("executions", {}).get("SUCCEEDED", 0)
    return [
        Check(f"{version} succeeds", entry.get("state") == "SUCCEEDED", str(entry.get("state"))),
        Check(f"{version} reaches all {devices} devices", reached == devices, str(reached)),
    ]


def _stopped(
    facts: Json, rollouts: dict[str, Json], version: str, canaries: int, verdict: str
) -> list[Check]:
    entry = rollouts.get(version, {})
    exposed = entry.get("exposed_devices", [])
    verdicts = {
        row["device"]
        for row in facts["benchmarks"]
        if row["candidate"] == version and row["verdict"] == verdict
    }
    ran = [
        device["id"]
        for device in facts["devices"]
        if any(change["version"] == version for change in device["history"])
    ]
    back = entry.get("executions", {}).get("ROLLED_BACK", 0)
    state = entry.get("state")
    return [
        Check(f"{version} is halted", state == "HALTED", str(state)),
        Check(f"{version} stays in the canary", 0 < len(exposed) <= canaries, str(exposed)),
        Check(f"{version} is rolled back where it was tried", back > 0, str(back)),
        Check(f"{version} is found out: {verdict}", bool(verdicts), str(sorted(verdicts))),
        Check(f"{version} never became a device's active version", not ran, str(ran)),
    ]


def _everyone_runs(facts: Json, version: str, devices: int) -> Check:
    running: Counter[Any] = Counter(device["active_version"] for device in facts["devices"])
    return Check(
        f"all {devices} devices run {version} at the end",
        running == Counter({version: devices}),
        str(dict(running)),
    )
