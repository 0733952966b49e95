import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from control_plane.builder import process
from control_plane.builder.errors import BuildError, LeaseLostError
from control_plane.builder.job import Progress

NAUGHTY = "tests.support.naughty_child"


def start(folder: Path, mode: str, *, timeout_s: float = 60.0) -> list[Progress]:
    """Run a misbehaving child; return its news."""
    news: list[Progress] = []
    (folder / "mode").write_text(mode)
    process.run(
        NAUGHTY,
        folder,
        timeout_s=timeout_s,
        keep_going=lambda progress: news.append(progress) if progress else None,
    )
    return news


def gone(pid: int) -> bool:
    """Tell whether a process ends within a moment (a zombie of init's has ended)."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return True
        os.sched_yield()
    return False


def pids(folder: Path) -> list[int]:
    return [int(pid) for pid in (folder / "pids").read_text().split()]


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("eat", "MemoryError"),
        ("burn", "processor time"),
        ("crash", "SIGSEGV"),
        ("fill", "File too large"),
        ("silent", "no readable result"),
        ("nonsense", "no readable result"),
        ("link", "no readable result"),
    ],
)
def test_a_child_that_misbehaves_fails_with_the_reason(
    mode: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match=says):
        start(tmp_path, mode)


def test_a_child_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="longer than 3 seconds"):
        start(tmp_path, "hang", timeout_s=3)
    assert all(gone(pid) for pid in pids(tmp_path))


def test_a_child_whose_lease_is_lost_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    (tmp_path / "mode").write_text("hang")

    def lose(progress: Progress | None) -> None:
        if progress is not None and progress.step == "hanging":
            raise LeaseLostError("another worker has it")

    with pytest.raises(LeaseLostError):
        process.run(NAUGHTY, tmp_path, timeout_s=60, keep_going=lose)
    assert all(gone(pid) for pid in pids(tmp_path))


def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "mode").write_text("hang")
    code = (
        "import sys; from pathlib import Path; from control_plane.builder import process\n"
        f"process.run({NAUGHTY!r}, Path(sys.argv[1]), timeout_s=600,\n"
        "            keep_going=lambda p: print(p, flush=True) if p else None)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        while b"hanging" not in parent.stdout.readline():
            assert parent.poll() is None
        parent.send_signal(signal.SIGKILL)
    assert all(gone(pid) for pid in pids(tmp_path))


def test_a_child_sees_no_settings_no_credentials_and_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOTILLA_DATABASE_URL", "postgresql://user:secret@host/db")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert start(tmp_path, "look") == [Progress(step="ready")]
    seen = json.loads((tmp_path / "seen").read_text())
    assert not [name for name in seen["names"] if name.startswith(("FLOTILLA", "AWS"))]
    assert seen["home"] == str(tmp_path)
    if sys.platform == "linux" and os.geteuid() == 0:
        assert seen["links"] == ["lo"]


def test_code_lying_in_the_folder_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    assert start(tmp_path, "look") == [Progress(step="ready")]
