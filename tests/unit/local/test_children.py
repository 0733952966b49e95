"""The supervisor's children, with real processes."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from control_plane.local.children import Child, StartError, Supervisor

WAIT_S = 20.0
SLEEPER = "import time; time.sleep(600)"


def eventually(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.02)  # processes of others cannot be awaited


def running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


def script(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", textwrap.dedent(code), *arguments]


def waiting_for(path: Path) -> Callable[[], bool]:
    return path.exists


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path / "logs")
    yield made
    made.stop()


def test_start_returns_when_the_child_is_ready(supervisor: Supervisor, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = "import pathlib,sys,time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"

    supervisor.start(Child("slow", script(code, str(ready)), ready=waiting_for(ready)))

    assert ready.exists()
    assert running(supervisor.pids()["slow"])


def test_a_child_that_ends_before_it_is_ready_is_reported_with_its_last_words(
    supervisor: Supervisor,
) -> None:
    code = "import sys; print('no such table: device', file=sys.stderr); sys.exit(3)"

    with pytest.raises(StartError, match="api ended with 3") as caught:
        supervisor.start(Child("api", script(code), ready=lambda: False))

    assert "no such table: device" in caught.value.message


def test_a_crashed_child_is_started_again(supervisor: Supervisor) -> None:
    supervisor.start(Child("sleeper", script(SLEEPER)))
    first = supervisor.pids()["sleeper"]

    os.kill(first, signal.SIGKILL)

    eventually(lambda: supervisor.pids()["sleeper"] != first, "not started again")
    assert running(supervisor.pids()["sleeper"])


def test_what_a_crashed_child_had_started_does_not_outlive_it(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    note = tmp_path / "grandchild"
    code = """
        import pathlib, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path(sys.argv[1] + ".part").write_text(str(child.pid))
        pathlib.Path(sys.argv[1] + ".part").rename(sys.argv[1])
        time.sleep(600)
    """
    supervisor.start(Child("parent", script(code, str(note)), ready=waiting_for(note)))
    grandchild = int(note.read_text())

    os.kill(supervisor.pids()["parent"], signal.SIGKILL)

    eventually(lambda: not running(grandchild), "the grandchild lives on")


def test_stop_ends_children_that_refuse_and_all_they_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.local.children.STOP_S", 0.3)
    note = tmp_path / "stubborn"
    code = """
        import pathlib, signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path(sys.argv[1]).touch()
        time.sleep(600)
    """
    supervisor = Supervisor(tmp_path / "logs")
    supervisor.start(Child("stubborn", script(code, str(note)), ready=waiting_for(note)))
    pid = supervisor.pids()["stubborn"]

    supervisor.stop()

    assert not running(pid)


def test_children_stop_in_the_reverse_order_of_their_start(tmp_path: Path) -> None:
    order = tmp_path / "order"
    code = """
        import pathlib, signal, sys, threading
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        pathlib.Path(sys.argv[1] + sys.argv[2]).touch()
        stop.wait()
        with open(sys.argv[1], "a") as file: file.write(sys.argv[2])
    """
    supervisor = Supervisor(tmp_path / "logs")
    for name in ("a", "b", "c"):
        argv = script(code, str(order), name)
        supervisor.start(Child(name, argv, ready=waiting_for(tmp_path / f"order{name}")))

    supervisor.stop()

    assert order.read_text() == "cba"


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    code = """
        import pathlib, subprocess, sys, time
        from control_plane.local.children import Child, Supervisor
        supervisor = Supervisor(pathlib.Path(sys.argv[1]) / "logs")
        argv = [sys.executable, "-c", "import time; time.sleep(600)"]
        supervisor.start(Child("one", argv))
        supervisor.start(Child("two", argv))
        adopted = subprocess.Popen(argv, start_new_session=True)
        supervisor.adopt(adopted.pid)
        pids = [*supervisor.pids().values(), adopted.pid, supervisor._guard.pid]
        note = pathlib.Path(sys.argv[1]) / "pids"
        note.with_suffix(".part").write_text(" ".join(map(str, pids)))
        note.with_suffix(".part").rename(note)
        time.sleep(600)
    """
    argv = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    with subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(Path.cwd())}) as supervisor:
        eventually(note.exists, "the supervisor did not start")
        supervisor.kill()
    pids = [int(text) for text in note.read_text().split()]

    eventually(lambda: not any(running(pid) for pid in pids), f"left behind of {pids}")
