"""The demo's devices: each a real agent, a process of its own with its own folder and identity."""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from control_plane.local.children import Child
from control_plane.local.demo_client import DemoError

SITES = ("vie", "fra", "dub", "osl")
ENROL_S = 60
TRIAL_LOCK = "FLOTILLA_AGENT_TRIAL_LOCK"


class Stack(Protocol):
    """A running control plane, embedded or not."""

    @property
    def url(self) -> str: ...

    @property
    def admin_token(self) -> str: ...

    @property
    def env(self) -> dict[str, str]: ...

    def run_beside(self, child: Child) -> None:
        """Run one more program under the same supervision."""


@dataclass(frozen=True)
class Plan:
    """A device to be: its name, the hardware it reports, its site."""

    name: str
    blueprint: str
    site: str


def plan(blueprints: Sequence[str], each: int) -> list[Plan]:
    """Return `each` devices per blueprint, spread over the sites."""
    return [
        Plan(f"{site}-{blueprint.rsplit('-', 1)[-1]}-{i + 1}", blueprint, site)
        for blueprint in blueprints
        for i in range(each)
        for site in [SITES[i % len(SITES)]]
    ]


class Fleet:
    """Agents beside a control plane, which supervises them: they end when it does.

    Args:
        stack: the control plane.
        folder: one subfolder a device.
        token: enrolment token with enough uses.
    """

    def __init__(self, stack: Stack, folder: Path, token: str) -> None:
        self._stack, self._folder, self._token = stack, folder, token

    def enroll(self, plans: Iterable[Plan]) -> None:
        """Enrol every device, two at a time; `DemoError` names one that could not."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(self._enroll, plans))

    def start(self, plans: Iterable[Plan]) -> None:
        """Start every agent."""
        for device in plans:
            command = [*_agent(), "run", "--data", str(self._folder / device.name)]
            self._stack.run_beside(Child(device.name, command, env=self._environment()))

    def _enroll(self, device: Plan) -> None:
        folder = self._folder / device.name
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [
                *_agent(),
                "enroll",
                *("--server", self._stack.url, "--token", self._token, "--data", str(folder)),
                *("--device", device.name, "--blueprint", device.blueprint),
                *("--label", f"site={device.site}"),
            ],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=ENROL_S,
            check=False,
        )
        if done.returncode != 0:
            raise DemoError(f"device {device.name} could not enrol: {done.stderr.strip()[-400:]}")

    def _environment(self) -> dict[str, str]:
        return self._stack.env | {
            # They share one machine: one trial at a time, so that none disturbs another's. Who
            # runs several fleets on one machine names one file for all of them.
            TRIAL_LOCK: os.environ.get(TRIAL_LOCK, str(self._folder / "trial.lock")),
            "FLOTILLA_AGENT_HEARTBEAT_S": "5",
            "FLOTILLA_AGENT_RECONNECT_BASE_S": "1",  # a handful is no herd
        }


def _agent() -> list[str]:
    return [sys.executable, "-m", "agent"]
