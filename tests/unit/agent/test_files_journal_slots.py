"""The disk: atomic writes, a journal with two generations, slots that are read before they run."""

import contextlib
import errno
import hashlib
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from agent.config import DataFolder
from agent.errors import DiskError, SlotError
from agent.files import Files
from agent.journal import Entry, Journal, Record
from agent.lifecycle import Idle
from agent.protocol import envelope, manifest
from agent.protocol.manifest import File
from agent.protocol.words import Reason
from agent.runtime import recovered
from agent.slots import Slots
from tests.unit.agent import story


class FullDisk(Files):
    """A disk that has no room for another byte."""

    def write(self, path: Path, data: bytes, mode: int = 0o600) -> NoReturn:  # noqa: ARG002 - full
        raise OSError(errno.ENOSPC, "No space left on device")


class CrowdedDisk(Files):
    """A disk with hardly any room."""

    def free(self, folder: Path) -> int:  # noqa: ARG002 - the same everywhere
        return 1000


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path)


@pytest.fixture
def slots(folder: DataFolder) -> Slots:
    return Slots(Files(), folder)


def stage(slots: Slots, version: str = "1.0.0", release: int = 1) -> str:
    """Stage a bundle of one file, and return its digest."""
    data = f"model {version}".encode()
    files = [File("model.onnx", len(data), hashlib.sha256(data).hexdigest())]
    ref = story.bundle(version, release)
    payload = manifest.encode(story.manifest(ref, files=files))
    digest = manifest.digest(payload)
    signed = envelope.seal(envelope.MANIFEST_TYPE, payload, {"k": b"s"})
    part = slots.open_part(digest, len(data))
    (part / "model.onnx").write_bytes(data)
    slots.stage(digest, signed)
    return digest


# --- files ----------------------------------------------------------------------------------


def test_a_write_leaves_the_old_bytes_or_the_new(tmp_path: Path) -> None:
    files, path = Files(), tmp_path / "f"
    files.write(path, b"old")
    files.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert files.names(tmp_path) == ["f"]


def test_a_broken_transfer_keeps_what_came(tmp_path: Path) -> None:
    files, path = Files(), tmp_path / "f"
    with contextlib.suppress(ConnectionError), files.appending(path, 0) as out:
        out.write(b"half")
        raise ConnectionError
    with files.appending(path, 2) as out:
        out.write(b"LF")
    assert path.read_bytes() == b"haLF"


def test_a_link_is_switched_over_a_leftover_of_a_crash(tmp_path: Path) -> None:
    files = Files()
    (tmp_path / "active.new").symlink_to("nowhere")
    files.point(tmp_path / "active", "bundles/a")
    files.point(tmp_path / "active", "bundles/b")
    assert files.link_name(tmp_path / "active") == "b"


def test_only_one_process_holds_a_lock(tmp_path: Path) -> None:
    files = Files()
    with files.only_one(tmp_path / "lock") as first, files.only_one(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    with files.only_one(tmp_path / "lock") as third:
        assert third


# --- journal --------------------------------------------------------------------------------


def record(boot: int) -> Record:
    return Record(boot=boot, state=Idle(standing=story.standing()))


def test_the_journal_gives_back_what_was_written_last(folder: DataFolder) -> None:
    journal = Journal(Files(), folder)
    assert journal.load() is None
    written = record(1)
    for boot in (1, 2, 3):
        written = journal.save(msgspec.structs.replace(written, boot=boot))
    assert journal.load() == written


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "remove", "zeros"])
def test_a_damaged_generation_leaves_the_one_before(folder: DataFolder, damage: str) -> None:
    journal = Journal(Files(), folder)
    first = journal.save(record(1))
    second = journal.save(msgspec.structs.replace(first, boot=2))
    newest = folder.root / f"journal.{second.number % 2}"
    data = newest.read_bytes()
    match damage:
        case "truncate":
            newest.write_bytes(data[: len(data) // 2])
        case "flip":
            newest.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        case "empty":
            newest.write_bytes(b"")
        case "zeros":
            newest.write_bytes(b"\0" * len(data))
        case _:
            newest.unlink()
    assert journal.load() == first


def test_the_journal_holds_every_state(folder: DataFolder) -> None:
    world = story.World()
    world.take(story.ordered())
    journal, written = Journal(Files(), folder), record(1)
    while True:
        written = journal.save(msgspec.structs.replace(written, state=world.state))
        assert journal.load() == written
        if not world.carry_out():
            break


def test_a_journal_that_cannot_be_written_is_a_disk_error(folder: DataFolder) -> None:
    with pytest.raises(DiskError) as caught:
        Journal(FullDisk(), folder).save(record(1))
    assert caught.value.reason is Reason.DISK_FULL


def test_an_outbox_that_nobody_empties_does_not_grow_for_ever(folder: DataFolder) -> None:
    many = tuple(Entry(channel="events", boot=1, seq=n, message="{}") for n in range(2000))
    kept = Journal(Files(), folder).save(msgspec.structs.replace(record(1), outbox=many))
    assert len(kept.outbox) == 512
    assert kept.outbox[-1].seq == 1999


# --- slots ----------------------------------------------------------------------------------


def test_a_staged_bundle_is_whole_and_can_be_activated(slots: Slots, folder: DataFolder) -> None:
    digest = stage(slots)
    slots.activate(digest)
    assert slots.active() == digest
    assert (folder.root / "active" / "model.onnx").read_bytes() == b"model 1.0.0"
    assert list(slots.sound()) == [digest]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "link", "second name"])
def test_a_slot_that_is_not_as_signed_is_never_activated(
    slots: Slots, folder: DataFolder, damage: str
) -> None:
    good, bad = stage(slots), stage(slots, "2.0.0", 2)
    slots.activate(good)
    path = slots.folder(bad) / "model.onnx"
    match damage:
        case "flip":
            path.write_bytes(b"Model 2.0.0")
        case "truncate":
            path.write_bytes(b"model")
        case "remove":
            path.unlink()
        case "link":
            path.rename(folder.root / "elsewhere")
            path.symlink_to(folder.root / "elsewhere")
        case _:
            (folder.root / "second").hardlink_to(path)
    with pytest.raises(SlotError, match=r"model\.onnx|No such file"):
        slots.activate(bad)
    assert slots.active() == good
    assert list(slots.sound()) == [good]


def test_a_manifest_under_another_digest_is_not_believed(slots: Slots) -> None:
    digest = stage(slots)
    slots.folder(digest).rename(slots.folder("f" * 64))
    with pytest.raises(SlotError, match="is not the manifest of this digest"):
        slots.verify("f" * 64)


def test_what_is_active_is_never_collected(slots: Slots) -> None:
    first, second, third = stage(slots), stage(slots, "2.0.0", 2), stage(slots, "3.0.0", 3)
    slots.activate(first)
    slots.collect((second,))
    assert set(slots.sound()) == {first, second}
    assert third not in slots.sound()


def test_partial_downloads_of_other_bundles_are_collected(slots: Slots, folder: DataFolder) -> None:
    slots.open_part("a" * 64, 10)
    slots.open_part("b" * 64, 10)
    slots.collect(("b" * 64,))
    assert Files().names(folder.root / "part") == ["b" * 64]


def test_a_disk_without_room_is_noticed_before_the_download(folder: DataFolder) -> None:
    with pytest.raises(DiskError) as caught:
        Slots(CrowdedDisk(), folder).open_part("a" * 64, 10)
    assert caught.value.reason is Reason.DISK_FULL
    assert "1000 bytes free" in str(caught.value)


def test_a_finished_download_that_is_not_the_signed_file_is_removed(
    slots: Slots, tmp_path: Path
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"other")
    wanted = File("f", 5, hashlib.sha256(b"right").hexdigest())
    assert not slots.take_part(path, wanted)
    assert not path.exists()


def test_no_active_model_is_a_state_too(slots: Slots) -> None:
    slots.activate(stage(slots))
    slots.activate("")
    assert slots.active() == ""


# --- a device that lost its journal ----------------------------------------------------------


def test_without_a_journal_the_active_bundle_is_last_known_good(slots: Slots) -> None:
    old, new = stage(slots), stage(slots, "2.0.0", 2)
    found = recovered(old, slots.sound())
    assert found.good is not None
    assert found.previous is not None
    assert (found.good.digest, found.previous.digest) == (old, new)
    assert found.floors == {"slm": 1}


def test_without_a_journal_or_a_whole_active_bundle_the_other_one_serves(slots: Slots) -> None:
    old = stage(slots)
    found = recovered("gone", slots.sound())
    assert found.good is not None
    assert found.good.digest == old


def test_without_anything_there_is_no_model(slots: Slots) -> None:
    assert recovered("", slots.sound()).good is None
