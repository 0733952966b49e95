import socket
import threading
from collections.abc import Iterator

import pytest

from control_plane.domain.errors import InvalidError
from control_plane.local import ports


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def port_of(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])


def test_a_free_port_is_taken_as_preferred() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        free = port_of(listening)

    assert ports.choose(free) == free


def test_a_taken_port_is_replaced_by_a_free_one(taken: socket.socket) -> None:
    chosen = ports.choose(port_of(taken))

    assert chosen != port_of(taken)
    assert not ports.accepts("127.0.0.1", chosen)


def test_patience_waits_for_a_port_that_is_about_to_be_free(taken: socket.socket) -> None:
    wanted = port_of(taken)
    threading.Timer(0.3, taken.close).start()

    assert ports.choose(wanted, patience_s=10) == wanted


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(InvalidError, match=r"203\.0\.113\.7"):
        ports.choose(8080, "203.0.113.7")


def test_who_listens_and_who_does_not(taken: socket.socket) -> None:
    port = port_of(taken)
    before = ports.accepts("127.0.0.1", port)
    taken.close()

    assert before
    assert not ports.accepts("127.0.0.1", port)


def test_nobody_there_does_not_respond() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        free = port_of(listening)

    assert not ports.responds(f"http://127.0.0.1:{free}/readyz")
