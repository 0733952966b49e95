"""The gateway's TLS socket: pieces in, packets together out, and nothing lost between."""

import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple

import pytest

from control_plane.gateway.wire import RECORD, WireSocket
from control_plane.signing.keyring import Keyring

NOW = datetime.now(UTC)  # noqa: TID251 - certificates are checked against the real clock
MANY = 8_000_000
"""Bytes: more than two sockets hold."""


class Pair(NamedTuple):
    """Our end, not blocking as paho has it, and the broker's."""

    ours: WireSocket
    broker: ssl.SSLSocket


@contextmanager
def _connected(keyring: Keyring) -> Iterator[Pair]:
    files = keyring.issue_service("broker", [], NOW)
    accepts = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    accepts.load_cert_chain(files.certificate, files.key)
    connects = ssl.create_default_context(cafile=str(keyring.ca_path))
    connects.sslsocket_class = WireSocket
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        near = socket.create_connection(server.getsockname())
        far = server.accept()[0]
        accepting = pool.submit(accepts.wrap_socket, far, server_side=True)
        ours = connects.wrap_socket(near, server_hostname="localhost")
        assert isinstance(ours, WireSocket)
        with ours, accepting.result() as broker:
            ours.settimeout(0)
            yield Pair(ours, broker)


@pytest.fixture
def pair(keyring: Keyring) -> Iterator[Pair]:
    """A connection."""
    with _connected(keyring) as pair:
        yield pair


def _read(pair: Pair, size: int) -> bytes:
    """Read so many bytes as a client does: a bit, then whatever it asks for next."""
    found = b""
    pair.ours.settimeout(10)
    while len(found) < size:
        found += pair.ours.recv(min(1 + len(found) % 7, size - len(found)))
    pair.ours.settimeout(0)
    return found


def test_what_comes_in_records_is_read_in_pieces_of_any_size(pair: Pair) -> None:
    said = [bytes([n % 251]) * n for n in (1, 2, 500, RECORD, RECORD + 1, 3)]
    for one in said:
        pair.broker.sendall(one)
    whole = b"".join(said)
    assert _read(pair, len(whole)) == whole
    with pytest.raises(ssl.SSLWantReadError):
        pair.ours.recv(1)


def test_what_was_read_ahead_is_pending(pair: Pair) -> None:
    pair.broker.sendall(b"0123456789")
    assert _read(pair, 1) == b"0"
    assert pair.ours.pending() == 9
    assert _read(pair, 9) == b"123456789"
    assert pair.ours.pending() == 0


def test_an_end_is_read_as_an_end(pair: Pair) -> None:
    pair.broker.sendall(b"last")
    pair.broker.unwrap = None  # type: ignore[method-assign, assignment]  # no goodbye of TLS either
    pair.broker.close()
    assert _read(pair, 4) == b"last"
    pair.ours.settimeout(10)
    assert pair.ours.recv(1) == b""


def test_nothing_is_sent_before_the_flush_and_everything_in_its_order_after_it(pair: Pair) -> None:
    pair.broker.settimeout(0)
    for n in range(1000):
        assert pair.ours.send(b"%4d" % n) == 4
    assert pair.ours.unsent
    with pytest.raises(ssl.SSLWantReadError):
        pair.broker.recv(1)
    assert pair.ours.flush()
    assert not pair.ours.unsent
    pair.broker.settimeout(10)
    found = b""
    while len(found) < 4000:
        found += pair.broker.recv(4000)
    assert found == b"".join(b"%4d" % n for n in range(1000))


def test_a_peer_that_does_not_read_costs_no_byte_and_no_wait(pair: Pair) -> None:
    said = bytes(range(256)) * (MANY // 256)
    pair.ours.send(said)
    assert not pair.ours.flush()
    pair.ours.send(b"and then")
    found = bytearray()
    pair.broker.settimeout(0.01)
    while len(found) < MANY + 8:
        pair.ours.flush()
        try:
            found += pair.broker.recv(1 << 20)
        except TimeoutError:
            continue
    assert bytes(found) == said + b"and then"
    assert pair.ours.flush()


def test_the_goodbye_is_sent_by_closing(pair: Pair) -> None:
    pair.ours.send(b"bye")
    pair.ours.close()
    assert pair.broker.recv(10) == b"bye"


def test_closing_after_the_peer_has_gone_raises_nothing(pair: Pair) -> None:
    pair.broker.close()
    for _ in range(3):
        pair.ours.send(b"x" * RECORD)
        try:
            pair.ours.flush()
        except OSError:
            break
    pair.ours.send(b"bye")
    pair.ours.close()
    assert pair.ours.fileno() == -1
