"""Bundle bytes by digest: a folder by default, or any object store that fsspec reaches."""

import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import fsspec

CHUNK = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Blob(NamedTuple):
    """Stored bytes: SHA-256 in hex, and how many."""

    digest: str
    size: int


class BlobError(Exception):
    """Bytes could not be stored or found; the message says which digest and why."""


class BlobStore:
    """Content-addressed bytes under one URL.

    Args:
        url: a folder, or an fsspec URL such as ``s3://bucket/prefix``.
    """

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def put(self, chunks: Iterable[bytes], *, limit: int, expect: str = "") -> Blob:
        """Store bytes; nothing is visible under a digest before all of it arrived.

        Args:
            chunks: the bytes.
            limit: most bytes to take.
            expect: digest that they must have; empty for any.

        Raises:
            BlobError: longer than `limit`, or another digest than `expect`.
        """
        self._fs.makedirs(f"{self._root}/incoming", exist_ok=True)
        temporary = f"{self._root}/incoming/{uuid.uuid4().hex}"
        digest, size = hashlib.sha256(), 0
        try:
            with self._fs.open(temporary, "wb") as out:
                for chunk in chunks:
                    size += len(chunk)
                    if size > limit:
                        raise BlobError(f"more than {limit} bytes; the limit is upload_limit_bytes")
                    digest.update(chunk)
                    out.write(chunk)
            found = digest.hexdigest()
            if expect and found != expect:
                raise BlobError(f"bytes have SHA-256 {found}, expected {expect}")
            self._fs.makedirs(f"{self._root}/{found[:2]}", exist_ok=True)
            self._fs.mv(temporary, self._key(found))
        finally:
            if self._fs.exists(temporary):
                self._fs.rm(temporary)
        return Blob(found, size)

    def put_file(self, path: Path, *, limit: int, expect: str = "") -> Blob:
        """Store a file's bytes; errors as in `put`."""
        with path.open("rb") as file:
            return self.put(_chunks(file), limit=limit, expect=expect)

    def open(self, digest: str) -> BinaryIO:
        """Open stored bytes for reading (seekable); `BlobError` if there are none."""
        try:
            return cast("BinaryIO", self._fs.open(self._key(digest), "rb"))
        except FileNotFoundError as error:
            raise BlobError(f"no bytes with SHA-256 {digest} are stored") from error

    def read(self, digest: str) -> bytes:
        """Return stored bytes, whole."""
        with self.open(digest) as file:
            return file.read()

    def fetch(self, digest: str, to: Path) -> None:
        """Copy stored bytes to a local file."""
        with self.open(digest) as source, to.open("wb") as out:
            for chunk in _chunks(source):
                out.write(chunk)

    def exists(self, digest: str) -> bool:
        return bool(self._fs.exists(self._key(digest)))

    def size(self, digest: str) -> int:
        """Return the number of bytes; `BlobError` if there are none."""
        try:
            return int(self._fs.size(self._key(digest)))
        except FileNotFoundError as error:
            raise BlobError(f"no bytes with SHA-256 {digest} are stored") from error

    def _key(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise BlobError(f"{digest[:80]!r} is not a SHA-256 in hex")
        return f"{self._root}/{digest[:2]}/{digest}"


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk
