"""Which control plane a command talks to, and as whom."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from control_plane.cli.exits import CliError, Exit

DEFAULT_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class Context:
    """An address, a token, and the CA of a control plane with a certificate of its own."""

    url: str
    token: str
    ca: Path | None = None


def data_folder() -> Path:
    """Return the data folder of the local control plane."""
    return Path(os.environ.get("FLOTILLA_DATA") or ".flotilla")


def current() -> Context:
    """Return the context: FLOTILLA_URL and FLOTILLA_TOKEN, else the local data folder's."""
    data = data_folder()
    endpoint = _endpoint(data)
    local_url = str(endpoint.get("url") or DEFAULT_URL)
    url = (os.environ.get("FLOTILLA_URL") or local_url).rstrip("/")
    token = os.environ.get("FLOTILLA_TOKEN", "")
    if not token and url == local_url.rstrip("/"):
        # The local token goes to the local control plane only.
        token = _read_token(data / str(endpoint.get("token_file") or "admin.token"))
    ca = os.environ.get("FLOTILLA_CA") or str(endpoint.get("ca") or "")
    return Context(url, token.strip(), data / ca if ca else None)


def _endpoint(data: Path) -> dict[str, object]:
    path = data / "endpoint.json"
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CliError(f"{path}: {error}", Exit.USAGE) from error
    if not isinstance(found, dict):
        raise CliError(f"{path}: expected an object with url and token_file", Exit.USAGE)
    return found


def _read_token(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}", Exit.UNAUTHENTICATED) from error
