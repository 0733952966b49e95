"""Real downloads of simulated devices: the manifest and each blob, checked and thrown away."""

import hashlib
import ssl

import httpx
import msgspec

from agent.protocol import envelope
from agent.protocol import manifest as manifests
from agent.protocol.errors import ProtocolError
from agent.protocol.manifest import File
from agent.protocol.messages import Order
from agent.protocol.words import Reason
from control_plane.local.fleet_simulator.lines import Caller

TIMEOUT_S = 60.0


class Downloads:
    """The device side of the API, for the bytes; threads may share it.

    Args:
        server: its URL.
        ca: the fleet's CA in PEM.
    """

    def __init__(self, server: str, ca: str) -> None:
        verify: ssl.SSLContext | bool = True
        if server.startswith("https:"):
            verify = ssl.create_default_context(cadata=ca)
        self._http = httpx.Client(base_url=server, timeout=TIMEOUT_S, verify=verify)

    def close(self) -> None:
        self._http.close()

    def fetch(self, caller: Caller, order: Order) -> Reason:
        """Download an order's bundle as its device; return why it failed, if it did."""
        digest = "" if order.bundle is None else order.bundle.digest
        headers = {"Authorization": f"Bearer {caller.secret}", "Accept-Encoding": "identity"}
        try:
            answer = self._http.get(f"/device/v1/bundles/{digest}", headers=headers)
            answer.raise_for_status()
            payload, _ = envelope.open_unverified(answer.content, envelope.MANIFEST_TYPE)
            if manifests.digest(payload) != digest:
                return Reason.BUNDLE_DIGEST
            for file in manifests.decode(payload).files:
                if not self._has(file, headers):
                    return Reason.DOWNLOAD_DIGEST
        except httpx.HTTPStatusError:
            return Reason.DOWNLOAD_REFUSED
        except httpx.HTTPError:
            return Reason.DOWNLOAD_FAILED
        except (ProtocolError, msgspec.MsgspecError):
            return Reason.BUNDLE_MALFORMED
        return Reason.NONE

    def _has(self, file: File, headers: dict[str, str]) -> bool:
        found = hashlib.sha256()
        with self._http.stream("GET", f"/device/v1/blobs/{file.sha256}", headers=headers) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_raw():
                found.update(chunk)
        return found.hexdigest() == file.sha256
