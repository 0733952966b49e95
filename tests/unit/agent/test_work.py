"""The work on a device: what the disk or a child does wrong ends a step, and is never run."""

import queue
import random
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from agent import children, web, work
from agent.config import Config, DataFolder
from agent.download import Downloader
from agent.files import Files
from agent.lifecycle import Download, Event, Ordered, RunTrial, StepFailed, TrialEnded
from agent.protocol import messages
from agent.protocol.words import Reason
from agent.slots import Slots
from control_plane.signing.keyring import Keyring
from tests.unit.agent import story
from tests.unit.agent.test_files_journal_slots import stage

WAIT_S = 20.0
# Says in `seconds` whether it was given an incumbent to run.
TRIAL = """
import sys, msgspec
from agent.benchmark import TrialRequest, TrialResult
from agent.protocol.words import Verdict
asked = msgspec.json.decode(sys.stdin.buffer.read(), type=TrialRequest)
said = TrialResult(verdict=Verdict.PASS, seconds=float(bool(asked.incumbent)))
sys.stdout.buffer.write(msgspec.json.encode(said))
"""


class Device(NamedTuple):
    """What carries the work out, where, and what came of it."""

    work: work.Work
    slots: Slots
    root: Path
    keyring: Keyring
    events: "queue.SimpleQueue[Event]"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    folder, files = DataFolder(tmp_path / "device"), Files()
    files.make_folder(folder.root)
    slots, keyring = Slots(files, folder), Keyring.open(tmp_path / "keys")
    server = web.Server(web.server_url("http://127.0.0.1:1"), web.trusting(keyring.ca_pem))
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    worker = work.Work(
        slots=slots,
        downloader=Downloader(files, server, deadline_s=0.1, min_rate=1, jitter=random.random),
        config=Config(trial_command=[sys.executable, "-c", TRIAL]),
        trust=keyring.trusted_keys(),
        hand_up=events.put,
    )
    return Device(worker, slots, folder.root, keyring, events)


def test_a_manifest_that_rotted_on_the_disk_ends_the_download(device: Device) -> None:
    part = device.root / "part" / story.NEW.digest
    part.mkdir(parents=True)
    (part / "manifest.dsse").write_bytes(b"rotten")
    device.work.start(Download(generation=1, bundle=story.NEW))
    event = device.events.get(timeout=WAIT_S)
    assert event == StepFailed(generation=1, reason=Reason.DISK_ERROR)


@pytest.mark.parametrize("rotten", [False, True])
def test_an_incumbent_that_rotted_on_the_disk_is_not_run(device: Device, *, rotten: bool) -> None:
    incumbent, candidate = stage(device.slots, "1.0.0", 1), stage(device.slots, "2.0.0", 2)
    if rotten:
        (device.slots.folder(incumbent) / "model.onnx").write_bytes(b"other bytes")
    new = msgspec.structs.replace(story.NEW, digest=candidate)
    device.work.start(RunTrial(order=story.order(1, new), incumbent=incumbent))
    event = device.events.get(timeout=WAIT_S)
    assert isinstance(event, TrialEnded)
    assert event.seconds == (0.0 if rotten else 1.0)


def test_an_order_that_could_not_be_checked_is_checked_again(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [["false"], children.python("agent.verify")]
    monkeypatch.setattr(children, "python", lambda _module: commands.pop(0))
    monkeypatch.setattr(work, "CHECK_AGAIN_S", (0.01,))
    device.work.check_order(device.keyring.sign_order(messages.encode(story.order())))
    event = device.events.get(timeout=WAIT_S)
    assert isinstance(event, Ordered)
    assert event.order == story.order()
