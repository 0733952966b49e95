"""Child processes: time limits, calling off, and what they must not do to the resident one."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from agent import children
from agent.cancellation import Cancellation
from agent.children import ChildTimeoutError
from agent.errors import CanceledError, ChildError

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def run(code: str, written: bytes = b"") -> children.Ended:
    return children.run([sys.executable, "-c", code], written, timeout_s=30)


def test_a_child_reads_stdin_and_answers_on_stdout() -> None:
    ended = run("import sys; sys.stdout.write(sys.stdin.read()[::-1])", b"abc")
    assert ended == (0, b"cba")


def test_an_exit_status_is_an_answer_too() -> None:
    assert run("raise SystemExit(3)").status == 3


def test_a_child_that_hangs_is_stopped_at_its_time_limit() -> None:
    started = time.monotonic()
    with pytest.raises(ChildTimeoutError):
        children.run(SLEEP, b"", timeout_s=0.3)
    assert time.monotonic() - started < 20


def test_a_child_that_is_called_off_ends_at_once() -> None:
    cancel = Cancellation()
    timer = threading.Timer(0.3, cancel.cancel)
    timer.start()
    started = time.monotonic()
    with pytest.raises(CanceledError):
        children.run(SLEEP, b"", timeout_s=60, cancel=cancel)
    timer.join()
    assert time.monotonic() - started < 20


def test_a_step_that_was_called_off_before_it_began_starts_no_child(tmp_path: Path) -> None:
    cancel = Cancellation()
    cancel.cancel()
    with pytest.raises(CanceledError):
        children.run(["/usr/bin/touch", str(tmp_path / "f")], b"", timeout_s=5, cancel=cancel)
    assert not (tmp_path / "f").exists()


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ChildError, match="no-such-program"):
        children.run(["/no-such-program"], b"", timeout_s=5)


def test_an_answer_without_end_is_refused() -> None:
    with pytest.raises(ChildError, match="the limit is"):
        run("import sys; sys.stdout.write('x' * 5_000_000)")


def test_a_childs_runtime_may_not_phone_home() -> None:
    code = "import os; print(os.environ['ORT_DISABLE_TELEMETRY'], end='')"
    assert run(code).output == b"1"


def test_a_child_finds_the_agent_from_any_folder(tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert run("import agent").status == 0
    finally:
        os.chdir(before)


def test_a_wait_ends_when_it_is_called_off() -> None:
    cancel = Cancellation()
    threading.Timer(0.1, cancel.cancel).start()
    with pytest.raises(CanceledError):
        cancel.wait(60)
