"""Transfers from a server that answers as a script says."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agent import web
from agent.cancellation import Cancellation
from agent.download import Downloader, _Pace
from agent.errors import CanceledError, DownloadError
from agent.files import Files
from agent.protocol.manifest import File
from agent.protocol.words import Reason
from agent.web import InterruptedTransferError

DATA = bytes(range(256)) * 400
FILE = File("model.onnx", len(DATA), hashlib.sha256(DATA).hexdigest())
Answer = tuple[int, dict[str, str], bytes]
Script = list[Callable[[str], Answer]]


class Server(ThreadingHTTPServer):
    """Answers each request with the next line of its script; the last line repeats."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: Script = []
        self.ranges: list[str] = []
        self.secrets: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        wanted = self.headers.get("Range", "")
        server.ranges.append(wanted)
        server.secrets.append(self.headers.get("Authorization", ""))
        line = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        status, headers, body = line(wanted)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def downloader(server: Server, deadline_s: float = 10.0) -> Downloader:
    url = web.server_url(f"http://127.0.0.1:{server.server_address[1]}")
    remote = web.Server(url, web.trusting_nobody_yet(), "secret")
    return Downloader(Files(), remote, deadline_s=deadline_s, min_rate=1, jitter=lambda: 0.01)


def whole(_wanted: str) -> Answer:
    return 200, {"Content-Length": str(len(DATA))}, DATA


def rest(wanted: str) -> Answer:
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    said = {
        "Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}",
        "Content-Length": str(len(DATA) - start),
    }
    return 206, said, DATA[start:]


def half(_wanted: str) -> Answer:
    return 200, {"Content-Length": str(len(DATA))}, DATA[:50_000]


def status(code: int) -> Callable[[str], Answer]:
    return lambda _wanted: (code, {"Content-Length": "0"}, b"")


def fetch(server: Server, to: Path, *script: Callable[[str], Answer]) -> bytes:
    server.script = list(script)
    downloader(server).file(FILE, to, Cancellation())
    return to.read_bytes()


def test_a_file_comes_whole_with_the_secret(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path / "f", whole) == DATA
    assert server.secrets == ["Bearer secret"]


def test_a_file_that_is_here_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    fetch(server, tmp_path / "f", whole)
    assert server.ranges == []


def test_a_broken_transfer_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path / "f", half, rest) == DATA
    assert server.ranges == ["", "bytes=50000-"]


def test_a_server_that_ignores_the_range_starts_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"other bytes")
    assert fetch(server, tmp_path / "f", whole) == DATA


def test_a_server_that_answers_another_range_starts_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)

    def another(_wanted: str) -> Answer:
        return rest("bytes=0-")

    assert fetch(server, tmp_path / "f", another) == DATA


def test_a_refused_range_starts_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)
    assert fetch(server, tmp_path / "f", status(416), whole) == DATA


def test_a_part_longer_than_the_file_starts_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA + b"more")
    assert fetch(server, tmp_path / "f", whole) == DATA


@pytest.mark.parametrize("code", [500, 503, 429, 408])
def test_a_server_that_is_not_well_is_asked_again(
    server: Server, tmp_path: Path, code: int
) -> None:
    assert fetch(server, tmp_path / "f", status(code), status(code), whole) == DATA


@pytest.mark.parametrize("code", [301, 302, 307, 401, 403, 404, 410])
def test_a_refusal_is_final(server: Server, tmp_path: Path, code: int) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path / "f", status(code))
    assert caught.value.reason is Reason.DOWNLOAD_REFUSED
    assert len(server.ranges) == 1


def test_more_bytes_than_were_signed_are_not_even_read(server: Server, tmp_path: Path) -> None:
    def longer(_wanted: str) -> Answer:
        return 200, {"Content-Length": str(len(DATA) + 1)}, b""

    with pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path / "f", longer)
    assert caught.value.reason is Reason.DOWNLOAD_LENGTH


def test_bytes_without_end_stop_at_the_signed_length(server: Server, tmp_path: Path) -> None:
    def endless(_wanted: str) -> Answer:
        return 200, {}, DATA * 4

    with pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path / "f", endless)
    assert caught.value.reason is Reason.DOWNLOAD_LENGTH
    assert (tmp_path / "f").stat().st_size <= len(DATA)


def test_the_deadline_ends_the_tries(server: Server, tmp_path: Path) -> None:
    server.script = [status(503)]
    with pytest.raises(DownloadError) as caught:
        downloader(server, deadline_s=0.05).file(FILE, tmp_path / "f", Cancellation())
    assert caught.value.reason is Reason.DOWNLOAD_FAILED


def test_a_manifest_that_is_too_long_is_refused(server: Server) -> None:
    server.script = [lambda _wanted: (200, {}, b" " * 300_000)]
    with pytest.raises(DownloadError) as caught:
        downloader(server).manifest("d", Cancellation())
    assert caught.value.reason is Reason.DOWNLOAD_LENGTH


def test_a_manifest_that_is_cut_short_is_asked_for_again(server: Server) -> None:
    server.script = [
        lambda _wanted: (200, {"Content-Length": "10"}, b"half"),
        lambda _wanted: (200, {"Content-Length": "5"}, b"whole"),
    ]
    assert downloader(server).manifest("d", Cancellation()) == b"whole"


def test_a_transfer_that_hangs_is_called_off_at_once(server: Server, tmp_path: Path) -> None:
    cancel, stalled = Cancellation(), threading.Event()

    def stall(_wanted: str) -> Answer:
        threading.Timer(0.1, cancel.cancel).start()
        stalled.wait(20)
        return whole("")

    server.script = [stall]
    with pytest.raises(CanceledError):
        downloader(server).file(FILE, tmp_path / "f", cancel)
    stalled.set()


def test_a_transfer_slower_than_the_least_rate_is_broken_off() -> None:
    pace = _Pace(min_rate=1000)
    pace._since -= 60
    with pytest.raises(InterruptedTransferError, match="bytes in 60 s"):
        pace.count(59_000)


def test_a_transfer_fast_enough_goes_on() -> None:
    pace = _Pace(min_rate=1000)
    pace._since -= 60
    pace.count(70_000)
    pace.count(1)
