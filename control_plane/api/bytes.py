"""Bytes by digest: taken in as a stream, given out in ranges."""

import re
from collections.abc import AsyncIterator, Iterator
from typing import BinaryIO

from anyio import from_thread
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from control_plane.api.errors import RangeNotSatisfiableError
from control_plane.blobs import Blob, BlobError, BlobStore
from control_plane.domain.errors import InvalidError, NotFoundError, TooLargeError

PIECE = 1 << 18
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def checked_digest(text: str) -> str:
    """Return `text` if it is a SHA-256 in hex."""
    if not _DIGEST.fullmatch(text):
        raise InvalidError(f"{text[:80]!r} is not a SHA-256 in hex", field="sha256")
    return text


def take(request: Request, blobs: BlobStore, digest: str, limit: int) -> Blob:
    """Store the request's body under its digest, without holding it in memory.

    Must run in a worker thread of the event loop that serves `request`.
    """
    declared = request.headers.get("content-length", "")
    if declared and int(declared) > limit:
        raise _too_large(int(declared), limit)
    try:
        return blobs.put(_bounded(request, limit), limit=limit, expect=digest)
    except BlobError as error:
        raise InvalidError(str(error), field="sha256") from error


def _bounded(request: Request, limit: int) -> Iterator[bytes]:
    stream, size = request.stream(), 0
    while chunk := from_thread.run(_next, stream):
        size += len(chunk)
        if size > limit:
            raise _too_large(size, limit)
        yield chunk


async def _next(stream: AsyncIterator[bytes]) -> bytes:
    async for chunk in stream:
        if chunk:
            return chunk
    return b""


def _too_large(size: int, limit: int) -> TooLargeError:
    return TooLargeError(
        f"an upload of {size} bytes; the limit is {limit} (FLOTILLA_UPLOAD_LIMIT_BYTES)",
        field="Content-Length",
    )


def give(request: Request, blobs: BlobStore, digest: str) -> Response:
    """Answer with stored bytes: all of them, one range, or 304 where the caller has them."""
    try:
        size = blobs.size(digest)
    except BlobError as error:
        raise NotFoundError(str(error), field="sha256") from error
    etag = f'"{digest}"'
    # Content has the digest in its name: it never changes.
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
    }
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    wanted = _wanted(request, size, etag)
    start, end = wanted or (0, size)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    status = 206 if wanted else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    return StreamingResponse(
        _pieces(blobs.open(digest), start, end),
        status,
        headers,
        media_type="application/octet-stream",
    )


def _wanted(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """Return the wanted range as (start, end), end excluded; None for everything.

    Several ranges, and units that we do not know, are ignored, as RFC 9110 14.2 allows.
    """
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or request.headers.get("if-range", etag) != etag:
        return None
    first, last = match.groups()
    if first == last == "":
        return None
    if first == "":
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise RangeNotSatisfiableError(size)
    return start, end


def _pieces(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = end - start
        while left and (piece := file.read(min(PIECE, left))):
            left -= len(piece)
            yield piece
