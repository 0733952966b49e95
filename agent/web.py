"""HTTP to the control plane: one place that knows about TLS, the pinned CA and the secret."""

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from agent.cancellation import Cancellation
from agent.errors import ConfigError, DownloadError
from agent.protocol.words import Reason

TIMEOUT_S = 30.0
AGENT = "flotilla-agent/1"


class InterruptedTransferError(Exception):
    """The connection failed or the server is not well: worth another try."""


class Answer(NamedTuple):
    """A short answer, read to its end."""

    status: int
    body: bytes


def is_loopback(host: str) -> bool:
    """Say whether `host` is this machine, so that no wire can be listened to."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def server_url(text: str, *, plain_http: bool = False) -> SplitResult:
    """Read the control plane's URL; plain HTTP only on this machine unless it was allowed.

    Raises:
        ConfigError: says what is wrong with the URL.
    """
    url = urlsplit(text.rstrip("/"))
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ConfigError(f"server {text!r}: expected https://host[:port]")
    if url.scheme == "http" and not plain_http and not is_loopback(url.hostname):
        raise ConfigError(
            f"server {text!r}: plain HTTP would show this device's secret to the network; "
            "use https://, or --allow-plain-http on a network that you trust"
        )
    return url


def trusting(ca_pem: str) -> ssl.SSLContext:
    """Return a TLS context that believes the fleet's CA and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca_pem)
    return context


def trusting_nobody_yet() -> ssl.SSLContext:
    """Return a TLS context for the one request whose answer is checked by its fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Server:
    """The control plane's HTTP side; one connection a request: a device asks rarely."""

    def __init__(self, url: SplitResult, tls: ssl.SSLContext, secret: str = "") -> None:
        self._url = url
        self._tls = tls
        self._secret = secret

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)

    def _headers(self, more: dict[str, str]) -> dict[str, str]:
        named = {"User-Agent": AGENT, "Accept-Encoding": "identity", **more}
        return {**named, "Authorization": f"Bearer {self._secret}"} if self._secret else named

    @contextmanager
    def ask(
        self,
        method: str,
        path: str,
        cancel: Cancellation,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """Send one request; the answer's body is the caller's to read. Redirects are not followed.

        Raises:
            InterruptedTransferError: no answer came.
            CanceledError: called off.
        """
        connection = self._connect()
        response = None
        try:
            with _worth_another_try(cancel):
                connection.connect()
            sock = connection.sock  # an answer that ends the connection takes it away from there
            with cancel.stopping(lambda: _hang_up(sock)):
                with _worth_another_try(cancel):
                    path = f"{self._url.path}{path}"
                    connection.request(method, path, body, self._headers(headers or {}))
                    response = connection.getresponse()
                yield response
        finally:
            if response is not None:
                response.close()
            connection.close()

    def document(
        self,
        method: str,
        path: str,
        cancel: Cancellation,
        *,
        limit: int,
        body: bytes | None = None,
    ) -> Answer:
        """Send one request and read an answer of at most `limit` bytes.

        Raises:
            DownloadError: the answer is longer.
            InterruptedTransferError: the answer did not come whole.
        """
        kind = {"Content-Type": "application/json"} if body is not None else {}
        with self.ask(method, path, cancel, body=body, headers=kind) as response:
            data = b""
            while len(data) <= limit and (more := read(response, limit + 1, cancel)):
                data += more
            if len(data) > limit:
                message = f"{path}: longer than {limit} bytes"
                raise DownloadError(Reason.DOWNLOAD_LENGTH, message)
            if response.length:
                raise InterruptedTransferError(f"{response.length} bytes are missing")
            return Answer(response.status, data)


def read(response: http.client.HTTPResponse, most: int, cancel: Cancellation) -> bytes:
    """Read what is here, at most `most` bytes, empty at the end.

    Raises:
        InterruptedTransferError: the connection failed.
    """
    with _worth_another_try(cancel):
        data = response.read1(most)
    cancel.check()
    return data


@contextmanager
def _worth_another_try(cancel: Cancellation) -> Iterator[None]:
    """Turn a fault of the network into `InterruptedTransferError`, unless we hung up ourselves."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        cancel.check()
        raise InterruptedTransferError(str(error) or type(error).__name__) from error


def _hang_up(sock: socket.socket) -> None:
    """End a wait for the network in another thread."""
    with suppress(OSError):  # closed already
        sock.shutdown(socket.SHUT_RDWR)
