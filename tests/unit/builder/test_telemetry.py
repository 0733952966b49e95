"""onnxruntime phones home unless it is told not to before it is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from control_plane.builder.process import environment

# Loads a model as the module under test leaves the environment, then lists what gives a reporter
# away: sockets among the open files, and threads; the test looks for files in the home folder.
PROBE = """
import importlib, json, os, sys, threading
module, model = sys.argv[1:]
if os.environ.get("LEAVE_THE_NETWORK"):
    import socket
    from control_plane.builder.process import _leave_the_network
    _leave_the_network()
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        print(json.dumps({"connected": True}))
        sys.exit()
importlib.import_module(module)
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
opened = []
for name in os.listdir("/proc/self/fd"):
    try:
        opened.append(os.readlink(f"/proc/self/fd/{name}"))
    except OSError:
        pass
threads = [open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task")]
print(json.dumps({"sockets": [o for o in opened if o.startswith("socket:")], "threads": threads,
    "switch": os.environ.get("ORT_DISABLE_TELEMETRY")}))
"""

HOMES = [
    "control_plane.builder.child",
    "control_plane.builder.evaluate",
    "control_plane.builder.recipes",
    "control_plane.builder.decoder",
    "control_plane.builder.graph",
    "control_plane.builder.inspect_upload",
]


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment without the switch: the module itself must throw it."""
    home = tmp_path / "home"
    home.mkdir()
    return {name: text for name, text in environment(home).items() if "TELEMETRY" not in name}


def probe(module: str, folder: Path, env: dict[str, str]) -> dict[str, object]:
    command = [sys.executable, "-c", PROBE, module, str(folder / "model.onnx")]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True, cwd=folder)
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("module", HOMES)
def test_a_process_that_imports_onnxruntime_through_us_writes_and_sends_nothing(
    module: str, folder: Path, bare: dict[str, str]
) -> None:
    seen = probe(module, folder, bare)
    assert seen["switch"] == "1"
    assert seen["sockets"] == []
    assert len(seen["threads"]) == 1  # type: ignore[arg-type] # JSON
    assert list(Path(bare["HOME"]).rglob("*")) == []


def test_the_probe_notices_a_reporter_that_is_left_on(folder: Path, bare: dict[str, str]) -> None:
    seen = probe("os", folder, {**bare, "LEAVE_THE_NETWORK": "1"})
    # Where the probe may not cut itself off, the reporter is not let loose for a test's sake.
    assert seen.get("connected") or list(Path(bare["HOME"]).rglob("*onnxruntime*"))


def test_every_child_of_a_build_has_the_switch_in_its_environment(tmp_path: Path) -> None:
    assert environment(tmp_path)["ORT_DISABLE_TELEMETRY"] == "1"
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
