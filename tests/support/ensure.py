"""Make sure that the programs the tests start are here: install them where we may, else say how."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

from tests.support import services

# Debian's package for each program.
WANTED = {
    "postgres": "postgresql",
    "initdb": "postgresql",
    "redis-server": "redis-server",
    "mosquitto": "mosquitto",
    "chromium": "chromium",
}


def missing(find: Callable[[str], str]) -> list[str]:
    """Return the packages whose programs `find` does not find."""
    lacking = set()
    for program, package in WANTED.items():
        try:
            find(program)
        except services.MissingServiceError:
            lacking.add(package)
    return sorted(lacking)


def find(program: str) -> str:
    """Find a program; for the browser any of its names will do."""
    if program == "chromium":
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        if found := next(filter(None, map(shutil.which, names)), None):
            return found
    return services.find(program)


def main() -> int:
    """Install what is missing; return the exit code."""
    packages = missing(find)
    if not packages:
        return 0
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        print(advice(packages), file=sys.stderr)
        return 1
    print(f"Installing for the tests: {' '.join(packages)}", flush=True)
    install(packages)
    packages = missing(find)
    if packages:
        print(advice(packages), file=sys.stderr)
    return bool(packages)


def install(packages: list[str]) -> None:
    """Install Debian packages without questions, and without starting their services."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    apt = ["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0"]
    subprocess.run([*apt, "update"], env=env, check=False)  # an old list may do
    subprocess.run([*apt, "install", "--no-install-recommends", *packages], env=env, check=False)


def advice(packages: list[str]) -> str:
    """Return what a person should do."""
    return (
        f"The tests start their own {', '.join(packages)}, and cannot find them.\n"
        f"  Debian, Ubuntu: sudo apt-get install {' '.join(packages)}\n"
        "  macOS: brew install postgresql@17 redis mosquitto; brew install --cask chromium\n"
        "Nothing needs to be running: private instances are started on free ports."
    )


if __name__ == "__main__":
    sys.exit(main())
