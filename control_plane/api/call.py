"""One request, known: who asks, the scopes it may open, and answers that are given only once."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Query, Request
from fastapi.responses import Response
from pydantic_core import to_json

from control_plane.api.errors import PreconditionFailedError
from control_plane.bootstrap import Application
from control_plane.domain.errors import InvalidError
from control_plane.domain.paging import DEFAULT_LIMIT, MAX_LIMIT
from control_plane.services.scope import Scope
from control_plane.store import idempotency

T = TypeVar("T")

Filter = Annotated[str, Query(max_length=2000, description="The filter grammar; empty: all.")]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Most items of this page.")]
Cursor = Annotated[str, Query(max_length=500, description="`next` of the page before.")]


@dataclass(frozen=True)
class _Pages:
    limit: int
    cursor: str

    @property
    def query(self) -> dict[str, Any]:
        """Return the arguments of a listing service."""
        return asdict(self)


@dataclass(frozen=True)
class _Listing(_Pages):
    filter: str


# Not for waiting: FastAPI would hand each plain function, and each class, to a thread of its own.
async def _pages(limit: Limit = DEFAULT_LIMIT, cursor: Cursor = "") -> _Pages:
    return _Pages(limit, cursor)


async def _listing(
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = "",
    filter: Filter = "",  # noqa: A002 - the query's name
) -> _Listing:
    return _Listing(limit, cursor, filter)


Paging = Annotated[_Pages, Depends(_pages)]
Listing = Annotated[_Listing, Depends(_listing)]


class Call:
    """An authenticated request.

    Args:
        application: the process's parts.
        request: what was asked.
        actor: who asks, as the audit log names them.
        body: the bytes of the request, where they are part of a promise to answer once.
    """

    def __init__(
        self, application: Application, request: Request, actor: str, body: bytes = b""
    ) -> None:
        self.application = application
        self.request = request
        self.actor = actor
        self._body = body

    def reading(self) -> AbstractContextManager[Scope]:
        """Open a scope that only reads."""
        return self.application.reading(self.actor)

    def read(self, work: Callable[[Scope], T]) -> T:
        """Run one reading use case."""
        with self.reading() as scope:
            return work(scope)

    def rehearse(self, work: Callable[[Scope], T]) -> T:
        """Run one use case of which nothing stays."""
        with self.application.rehearsing(self.actor) as scope:
            return work(scope)

    def show(self, work: Callable[[Scope], object]) -> Response:
        """Run one reading use case and answer with its value, written down as it is.

        Of a page of devices the framework would copy and check every field of our own read models:
        half of what the page costs.
        """
        return Response(to_json(self.read(work)), media_type="application/json")

    def write(
        self,
        work: Callable[[Scope], object],
        *,
        status: int = 200,
        location: Callable[[Any], str] | None = None,
    ) -> Response:
        """Run one use case in one transaction, and answer with its value.

        With an Idempotency-Key the answer is stored in that transaction: a repeat gets the same
        bytes and changes nothing.

        Args:
            work: the use case.
            status: of the answer.
            location: where the thing made can be read.
        """
        key = self.request.headers.get("idempotency-key", "")
        if len(key) > idempotency.MAX_KEY:
            raise InvalidError(f"longer than {idempotency.MAX_KEY}", field="Idempotency-Key")
        with self.application.scope(self.actor) as scope:
            if key:
                asked = self._fingerprint()
                known = idempotency.claim(scope.tx, scope.now, self.actor, key, asked)
                if known is not None:
                    return _replayed(known)
            value = work(scope)
            body = to_json(value)
            if key:
                idempotency.keep(scope.tx, self.actor, key, status, body)
        headers = etag_of(value)
        if location is not None:
            headers["Location"] = location(value)
        return Response(body, status, headers, media_type="application/json")

    def _fingerprint(self) -> str:
        asked = f"{self.request.method} {self.request.url.path}?{self.request.url.query}\n"
        return hashlib.sha256(asked.encode() + self._body).hexdigest()


def _replayed(known: idempotency.Answer) -> Response:
    headers = {"Idempotency-Replayed": "true"}
    return Response(known.body, known.status, headers, media_type="application/json")


async def _raw_body(request: Request) -> bytes:
    return await request.body()


async def _read_call(request: Request) -> Call:
    return Call(request.app.state.application, request, request.state.actor)


async def _write_call(request: Request, body: Annotated[bytes, Depends(_raw_body)]) -> Call:
    return Call(request.app.state.application, request, request.state.actor, body)


Reading = Annotated[Call, Depends(_read_call)]
Writing = Annotated[Call, Depends(_write_call)]


def etag_of(value: object) -> dict[str, str]:
    """Return the ETag header of a value that has a revision; no header for others."""
    revision = getattr(value, "revision", None)
    return {"ETag": f'"{revision}"'} if isinstance(revision, int) else {}


async def _if_match(header: Annotated[str, Header(alias="If-Match")] = "") -> int | None:
    text = header.strip().removeprefix("W/").strip('"')
    if text in ("", "*"):
        return None
    if not text.isdecimal():
        raise InvalidError(f"{header!r} is not an ETag of ours", field="If-Match")
    return int(text)


IfMatch = Annotated[int | None, Depends(_if_match)]


def check_revision(found: int, wanted: int | None) -> None:
    """Raise `PreconditionFailedError` unless the stored revision is the one that was read."""
    if wanted is not None and found != wanted:
        raise PreconditionFailedError(
            f"it is at revision {found}, not {wanted}: read it again and repeat the change",
            field="If-Match",
        )
