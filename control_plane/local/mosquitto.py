"""Mosquitto's configuration: mutual TLS, names from certificates, a pattern ACL, sane limits."""

import os
import shutil
from pathlib import Path

from agent.protocol import topics

# Where package systems put a server program that a user's PATH may lack.
PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/opt/homebrew/bin")
GATEWAY = "flotilla-gateway"
# The client id is the certificate's name, so gateways that run at once need a name each.
GATEWAYS = (GATEWAY, *(f"{GATEWAY}-{number}" for number in range(1, 33)))

# `%u` is the certificate's name. A SUBSCRIBE outside is granted and then delivers nothing.
ACL = f"""\
pattern write {topics.PREFIX}/%u/up/#
pattern read {topics.PREFIX}/%u/down/#

""" + "\n".join(f"user {name}\ntopic readwrite {topics.PREFIX}/#\n" for name in GATEWAYS)


def is_gateway(name: str) -> bool:
    """Return whether a certificate's name is a gateway's."""
    return name in GATEWAYS


def find() -> str | None:
    """Return the path of an installed Mosquitto."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *PLACES])
    return shutil.which("mosquitto", path=path)


def configuration(
    *, host: str, port: int, ca: Path, certificate: Path, key: Path, acl: Path, folder: Path
) -> str:
    """Return mosquitto.conf for one machine; `folder` keeps what survives a restart."""
    lines = [
        f"listener {port} {host}",
        *mutual_tls(ca, certificate, key, acl),
        *limits(),
        "persistence true",
        f"persistence_location {folder}/",
        "autosave_interval 60",
        "persistent_client_expiration 14d",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages false",
    ]
    if os.getuid() == 0:
        # Else it becomes the user mosquitto, who cannot read this folder, and forgets silently.
        lines.append("user root")
    return "\n".join(lines) + "\n"


def mutual_tls(ca: Path, certificate: Path, key: Path, acl: Path) -> list[str]:
    """Return the lines that make a certificate's name the user name and the client id."""
    return [
        "allow_anonymous false",
        f"cafile {ca}",
        f"certfile {certificate}",
        f"keyfile {key}",
        "require_certificate true",
        "use_identity_as_username true",
        # Without it a device that presents another's client id throws that device off.
        "use_username_as_clientid true",
        "tls_version tlsv1.2",
        f"acl_file {acl}",
    ]


def limits() -> list[str]:
    """Return the lines that bound what a client can make the broker hold."""
    return [
        "max_packet_size 262144",  # else 200 MB before authentication
        "max_keepalive 1200",
        "max_queued_messages 200000",  # the default of 1000 drops most of a slow reader's reports
        "max_inflight_messages 100",
    ]
