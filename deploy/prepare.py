"""Before anything else starts: the fleet's keys, the broker's certificate, generated secrets.

Runs as root, once per `docker compose up`, and keeps what it finds.
"""

import argparse
import os
import secrets
import shutil
from pathlib import Path

from control_plane.bootstrap import utc_now
from control_plane.signing import keyfiles
from control_plane.signing.keyring import Keyring

FLOTILLA_UID = 10001  # as in the Dockerfile
MOSQUITTO_UID = 1883  # as in the eclipse-mosquitto image


def main() -> None:
    """Prepare the volumes named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("keys", "broker", "secrets", "acl"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--broker-name", action="append", default=[])
    given = parser.parse_args()
    keyring = Keyring.open(given.keys)
    prepare_broker(keyring, given.broker, given.acl, given.broker_name)
    prepare_secrets(given.secrets)
    if os.getuid() == 0:
        give(given.keys, FLOTILLA_UID)
        give(given.secrets, FLOTILLA_UID)
        give(given.broker, MOSQUITTO_UID)


def prepare_broker(keyring: Keyring, folder: Path, acl: Path, names: list[str]) -> None:
    """Put the broker's certificate, its key, the fleet's CA and the ACL into its own folder."""
    keyfiles.make_private(folder)
    files = keyring.issue_service("broker", names, utc_now())
    for source, name in (
        (keyring.ca_path, "ca.pem"),
        (files.certificate, "server.pem"),
        (files.key, "server.key"),
        (acl, "acl"),
    ):
        keyfiles.write_private(folder / name, source.read_bytes())


def prepare_secrets(folder: Path) -> None:
    """Generate what is not there yet."""
    keyfiles.make_private(folder)
    for name in ("postgres-password", "share-group"):
        if not (folder / name).exists():
            keyfiles.write_private(folder / name, secrets.token_hex(24).encode())


def give(folder: Path, uid: int) -> None:
    """Make a user the owner of a folder and of what is in it."""
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, uid, uid)


if __name__ == "__main__":
    main()
