"""Ports: the usual one if it is free, else any; and who answers."""

import socket
import time
import urllib.error
import urllib.request

from control_plane.domain.errors import InvalidError

POLL_S = 0.1


def choose(preferred: int, host: str = "127.0.0.1", *, patience_s: float = 0.0) -> int:
    """Return `preferred` if nobody has it, else a free port.

    Args:
        preferred: the port to have if possible.
        host: the address to listen on.
        patience_s: how long to wait for whoever has it to go away.

    Raises:
        InvalidError: nobody can listen there.
    """
    give_up = time.monotonic() + patience_s
    while (port := _bind(host, preferred)) is None and time.monotonic() < give_up:
        time.sleep(POLL_S)  # a port tells nobody that it has become free
    if port is None:
        port = _bind(host, 0)
    if port is None:
        raise InvalidError(
            f"cannot listen on {host}: not an address of this machine, or no port is free",
            field="FLOTILLA_API_HOST",
        )
    return port


def _bind(host: str, port: int) -> int | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def accepts(host: str, port: int) -> bool:
    """Return whether somebody listens."""
    try:
        socket.create_connection((host, port), timeout=0.5).close()
    except OSError:
        return False
    return True


def responds(url: str) -> bool:
    """Return whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own loopback URL
            return bool(answer.status == 200)  # noqa: PLR2004 - HTTP
    except (urllib.error.URLError, OSError):
        return False
