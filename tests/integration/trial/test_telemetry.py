"""A block leaves no trace: nothing written at home, no socket opened; the default leaves both."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.trial.process import BlockProcess
from agent.trial.readings import BlockRequest, Ended, Loaded, Slice, Step, Task
from tests.integration.trial.bundles import tiny_bundle

PROC = Path("/proc")


def sockets(pid: int) -> list[str]:
    links = (str(entry.readlink()) for entry in (PROC / str(pid) / "fd").iterdir())
    return [link for link in links if link.startswith("socket:")]


def threads(pid: int) -> int:
    return len(list((PROC / str(pid) / "task").iterdir()))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "ORT_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_a_block_writes_nothing_and_opens_no_socket(home: Path, tmp_path: Path) -> None:
    request = BlockRequest(task=Task.MEASURE, folder=str(tiny_bundle(tmp_path / "a")))
    before = sorted(tmp_path.rglob("*"))
    with BlockProcess(request, time.monotonic() + 60) as block:
        block.read(Loaded)
        for step in Step:
            block.ask(step, Slice)
        if PROC.exists():  # Linux
            assert sockets(block.process.pid) == []
            assert threads(block.process.pid) == 1
        block.end(Ended)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_block_started_by_hand_is_as_silent(home: Path, tmp_path: Path) -> None:
    """The module switches telemetry off itself, whoever starts it."""
    request = BlockRequest(task=Task.PROBE, folder=str(tiny_bundle(tmp_path / "a")))
    subprocess.run(
        [sys.executable, "-m", "agent.trial.block"],
        input=f'{{"task": "probe", "folder": "{request.folder}"}}\n'.encode(),
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )
    assert list(home.rglob("*")) == []


def test_the_environment_is_what_keeps_it_silent(home: Path) -> None:
    """Without the variable this very onnxruntime may talk; with it, it must not even prepare to."""
    code = "import agent.trial.decoder, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=60, text=True
    )
    assert done.stdout == "1\n"
    assert list(home.rglob("*")) == []
