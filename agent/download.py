"""Resumable HTTP: a bundle's manifest and files, within signed lengths and limits of time."""

import http.client
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.cancellation import Cancellation
from agent.errors import DownloadError
from agent.files import Files, disk_error
from agent.protocol.envelope import MAX_ENVELOPE
from agent.protocol.manifest import File
from agent.protocol.words import Reason
from agent.web import InterruptedTransferError, Server, read

log = logging.getLogger(__name__)

CHUNK = 64 << 10
BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 60.0
RATE_WINDOW_S = 20.0  # how long a transfer may be slow before it is broken off
OK, PARTIAL, RANGE_REFUSED = 200, 206, 416
TRY_AGAIN = {408, 425, 429}
SERVER_FAULT = 500


class Downloader:
    """Fetches from the control plane, trying again until a deadline."""

    def __init__(
        self,
        files: Files,
        server: Server,
        *,
        deadline_s: float,
        min_rate: int,
        jitter: Callable[[], float],
    ) -> None:
        self._files = files
        self._server = server
        self._deadline_s = deadline_s
        self._min_rate = min_rate
        self._jitter = jitter  # 0 to 1: a fleet must not come back in step

    def manifest(self, digest: str, cancel: Cancellation) -> bytes:
        """Return the signed envelope of a bundle's manifest.

        Raises:
            DownloadError: refused, too long, or not to be had before the deadline.
        """
        path = f"/device/v1/bundles/{digest}"
        for _ in self._attempts(path, cancel):
            with _worth_another_try():
                answer = self._server.document("GET", path, cancel, limit=MAX_ENVELOPE)
                _accept(answer.status, path, {OK})
                return answer.body
        raise AssertionError("unreachable: the attempts end with an error")

    def file(self, file: File, to: Path, cancel: Cancellation) -> None:
        """Fetch what `to` lacks of `file`; its bytes are not checked here.

        Raises:
            DownloadError: refused, longer than signed, or not to be had before the deadline.
            DiskError: the disk is full, or fails.
        """
        path = f"/device/v1/blobs/{file.sha256}"
        for _ in self._attempts(path, cancel):
            with _worth_another_try():
                self._transfer(path, file, to, cancel)
            if self._is_here(file, to):
                return

    def _is_here(self, file: File, to: Path) -> bool:
        return self._files.exists(to) and self._files.size(to) == file.size

    def _transfer(self, path: str, file: File, to: Path, cancel: Cancellation) -> None:
        if self._is_here(file, to):
            return
        offset = self._files.size(to)
        if offset >= file.size:
            offset = 0
        wanted = {"Range": f"bytes={offset}-"} if offset else {}
        with self._server.ask("GET", path, cancel, headers=wanted) as response:
            if response.status == RANGE_REFUSED:
                self._files.remove(to)
                raise InterruptedTransferError("the server has no such range")
            _accept(response.status, path, {OK, PARTIAL})
            start = offset if _continues(response, offset) else 0
            if response.length is not None and start + response.length > file.size:
                raise _too_long(file)
            self._write(response, file, to, start, cancel)

    def _write(
        self,
        response: http.client.HTTPResponse,
        file: File,
        to: Path,
        start: int,
        cancel: Cancellation,
    ) -> None:
        done = start
        pace = _Pace(self._min_rate)
        with _disk(to), self._files.appending(to, start) as out:
            while chunk := read(response, CHUNK, cancel):
                done += len(chunk)
                if done > file.size:
                    raise _too_long(file)
                out.write(chunk)
                pace.count(len(chunk))

    def _attempts(self, path: str, cancel: Cancellation) -> Iterator[int]:
        """Yield until the deadline, waiting longer each time, with full jitter; ends by raising."""
        deadline = time.monotonic() + self._deadline_s
        number = 0
        while True:
            yield number
            pause = self._jitter() * min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(number, 16))
            if time.monotonic() + pause > deadline:
                message = f"{path}: not to be had in {self._deadline_s:.0f} s"
                raise DownloadError(Reason.DOWNLOAD_FAILED, message)
            cancel.wait(pause)
            number += 1


class _Pace:
    """Breaks a transfer off that is slower than the least rate: it may hang for ever otherwise."""

    def __init__(self, min_rate: int) -> None:
        self._min_rate = min_rate
        self._since = time.monotonic()
        self._bytes = 0

    def count(self, amount: int) -> None:
        self._bytes += amount
        elapsed = time.monotonic() - self._since
        if elapsed < RATE_WINDOW_S:
            return
        if self._bytes < self._min_rate * elapsed:
            raise InterruptedTransferError(f"{self._bytes} bytes in {elapsed:.0f} s")
        self._since, self._bytes = time.monotonic(), 0


def _accept(status: int, path: str, wanted: set[int]) -> None:
    if status in wanted:
        return
    if status >= SERVER_FAULT or status in TRY_AGAIN:
        raise InterruptedTransferError(f"status {status}")
    # Also redirects: the secret and the order name one server, and no other.
    raise DownloadError(Reason.DOWNLOAD_REFUSED, f"{path}: the server answers {status}")


def _continues(response: http.client.HTTPResponse, offset: int) -> bool:
    """Say whether the answer goes on where the part file ends; otherwise it starts anew."""
    said = response.getheader("Content-Range", "")
    return response.status == PARTIAL and said.startswith(f"bytes {offset}-")


def _too_long(file: File) -> DownloadError:
    message = f"{file.path}: longer than the {file.size} bytes that were signed"
    return DownloadError(Reason.DOWNLOAD_LENGTH, message)


@contextmanager
def _worth_another_try() -> Iterator[None]:
    try:
        yield
    except InterruptedTransferError as error:
        log.info("transfer.interrupted error=%s", error)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error
