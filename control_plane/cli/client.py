"""The control plane's API over HTTP; its problems become errors with exit codes."""

import ssl
import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from control_plane.cli.context import Context, current
from control_plane.cli.exits import CliError, Exit, UnreachableError

TIMEOUT_S = 60.0
PAGE = 200
_TRIES = 3

_CODES = {
    400: Exit.USAGE,
    401: Exit.UNAUTHENTICATED,
    403: Exit.UNAUTHENTICATED,
    404: Exit.NOT_FOUND,
    409: Exit.CONFLICT,
    412: Exit.CONFLICT,
    413: Exit.USAGE,
    422: Exit.USAGE,
    503: Exit.UNREACHABLE,
}
_HINTS = {
    401: "set FLOTILLA_TOKEN, or run the command where the control plane's data folder is",
    412: "somebody changed it meanwhile: look at it again and repeat",
}


class Client:
    """A session with one control plane.

    Args:
        context: where, and as whom; the current one if not given.
    """

    def __init__(self, context: Context | None = None) -> None:
        self.context = context or current()
        headers = {"Accept": "application/json"}
        if self.context.token:
            headers["Authorization"] = f"Bearer {self.context.token}"
        url = self.context.url
        try:
            self._http = httpx.Client(
                base_url=url, headers=headers, timeout=TIMEOUT_S, verify=self._trust()
            )
        except httpx.InvalidURL as error:
            raise CliError(f"FLOTILLA_URL {url!r}: {error}", Exit.USAGE) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON of a GET; empty parameters are left out."""
        return self._json(
            "GET", path, params={k: v for k, v in query.items() if v not in ("", None)}
        )

    def pages(self, path: str, *, most: int = 0, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield the items of a listing, page after page, at most `most` (0: all)."""
        cursor, left = "", most
        while True:
            size = min(PAGE, left) if most else PAGE
            page = self.get(path, limit=size, cursor=cursor, **query)
            yield from page["items"]
            cursor, left = page["next"], left - len(page["items"])
            if not cursor or (most and left <= 0):
                return

    def post(self, path: str, body: Any = None) -> Any:
        """Return the JSON of a POST, which a lost answer does not make happen twice."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return self._json("POST", path, json={} if body is None else body, headers=headers)

    def put(self, path: str, body: Any) -> Any:
        """Return the JSON of a PUT."""
        return self._json("PUT", path, json=body)

    def has_blob(self, digest: str) -> bool:
        """Return whether the control plane already holds these bytes."""
        answer = self._send("HEAD", f"/api/v1/blobs/{digest}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return False
        self._check(answer)
        return True

    def put_blob(self, digest: str, size: int, chunks: Iterator[bytes]) -> None:
        """Upload bytes as a stream."""
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        path = f"/api/v1/blobs/{digest}"
        try:
            self._check(self._http.put(path, content=chunks, headers=headers))
        except httpx.TransportError as error:
            raise UnreachableError(self.context.url, _why(error)) from error

    def content(self, path: str) -> bytes:
        """Return the bytes of a GET."""
        answer = self._send("GET", path)
        self._check(answer)
        return answer.content

    def blob(self, digest: str) -> Iterator[bytes]:
        """Yield stored bytes."""
        try:
            with self._http.stream("GET", f"/api/v1/blobs/{digest}") as answer:
                if not answer.is_success:
                    answer.read()
                self._check(answer)
                yield from answer.iter_bytes()
        except httpx.TransportError as error:
            raise UnreachableError(self.context.url, _why(error)) from error

    def find(self, path: str, **query: Any) -> Any | None:
        """Return the JSON of a GET, or None if there is no such thing."""
        try:
            return self.get(path, **query)
        except CliError as error:
            if error.code is Exit.NOT_FOUND:
                return None
            raise

    def _json(self, method: str, path: str, **how: Any) -> Any:
        answer = self._send(method, path, **how)
        self._check(answer)
        try:
            return answer.json()
        except ValueError as error:
            raise CliError(
                f"{self.context.url} does not answer like a Flotilla control plane"
            ) from error

    def _send(self, method: str, path: str, **how: Any) -> httpx.Response:
        # Every request here may be repeated: reads, whole documents, and POSTs with a key.
        for attempt in range(1, _TRIES + 1):
            try:
                return self._http.request(method, path, **how)
            except (httpx.RemoteProtocolError, httpx.ReadError) as error:
                if attempt == _TRIES:
                    raise UnreachableError(self.context.url, _why(error)) from error
            except httpx.TransportError as error:
                raise UnreachableError(self.context.url, _why(error)) from error
        raise AssertionError("unreachable")

    def _check(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        said = _problem(answer)
        field, detail = said.get("field", ""), said.get("detail", "")
        # Most messages already name their field; what is not there is named by its name.
        named = answer.status_code == httpx.codes.NOT_FOUND or field in detail
        where = "" if named else f"{field}: "
        raise CliError(
            f"{where}{detail or answer.reason_phrase}",
            _CODES.get(answer.status_code, Exit.FAILED),
            hint=_HINTS.get(answer.status_code, ""),
        )

    def _trust(self) -> ssl.SSLContext | bool:
        if self.context.ca is None:
            return True
        try:
            return ssl.create_default_context(cafile=str(self.context.ca))
        except OSError as error:
            raise CliError(f"CA file {self.context.ca}: {error}", Exit.USAGE) from error


def name(text: str) -> str:
    """Return a name as one segment of a path."""
    return quote(text, safe="")


def _problem(answer: httpx.Response) -> dict[str, str]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _why(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__
