"""Stands in for agent.benchmark: does what the bundle's behaviour.json says, in milliseconds."""

import json
import os
import sys
import time
from pathlib import Path

import msgspec

from agent.benchmark import TrialRequest, TrialResult
from agent.protocol.messages import Metric
from agent.protocol.words import Verdict


def main() -> int:
    """Try or probe."""
    if sys.argv[1:2] == ["--probe"]:
        return _probe(_behaviour(sys.argv[2]))
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=TrialRequest)
    behaviour = _behaviour(request.candidate)
    _wait_for(behaviour.get("trial_waits_for", ""))
    said = behaviour.get("trial", "pass")
    if said == "crash":
        os.abort()
    again = Path(request.candidate).parent.parent / "tried"
    if said == "inconclusive once":
        said = "pass" if again.exists() else "inconclusive"
        again.touch()
    metric = Metric(
        name="token_ms",
        unit="ms",
        candidate=3.0,
        incumbent=1.0 if request.incumbent else None,
        ratio=3.0 if request.incumbent else None,
        verdict=Verdict(said),
    )
    sys.stdout.buffer.write(
        msgspec.json.encode(TrialResult(verdict=Verdict(said), metrics=[metric], seconds=0.1))
    )
    return 0


def _probe(behaviour: dict[str, str]) -> int:
    _wait_for(behaviour.get("probe_waits_for", ""))
    return 0 if behaviour.get("probe", "healthy") == "healthy" else 1


def _behaviour(folder: str) -> dict[str, str]:
    read: dict[str, str] = json.loads((Path(folder) / "behaviour.json").read_text())
    return read


def _wait_for(path: str) -> None:
    while path and not Path(path).exists():
        time.sleep(0.02)  # a file is how another process tells this one to go on


if __name__ == "__main__":
    sys.exit(main())
